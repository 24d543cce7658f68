//! When a picture has to be there: whether it is begun, and before each step whether to go on.
//!
//! All decisions are made here, of numbers alone, so that a test can run many pictures on a clock of its own.

use std::time::{Duration, Instant};

use crate::{Error, Result};

use super::times::Parts;

/// What becomes of a picture that would come too late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Late {
    /// None is drawn: [`Error::Deadline`] at once if its times are known, or as soon as it is seen.
    #[default]
    Fail,
    /// It is drawn in fewer steps, as many as there is time for, with a schedule of their own; which takes known times. What is
    /// seen later fails.
    FewerSteps,
    /// The step that there is time for becomes the last, and what is decoded is its estimate of the clean picture:
    /// [`Output::estimate`](super::Output::estimate).
    Estimate,
}

/// Part of a deadline by which a picture that has been begun may be expected to be late before it is given up: expectations vary.
const SLACK: f64 = 0.05;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn late(when: &str, needed_ms: f64, deadline: Duration) -> Error {
    let needed = Duration::try_from_secs_f64(needed_ms / 1e3).unwrap_or(Duration::MAX);
    Error::Deadline { when: when.to_string(), needed, deadline }
}

/// In how many of `steps` a picture is drawn of which these times are known.
///
/// # Errors
/// [`Error::Deadline`] when there is no time for it.
pub(super) fn admit(deadline: Duration, how: Late, steps: usize, expected: &Parts) -> Result<usize> {
    let fits = |steps: usize| expected.total(steps) <= ms(deadline);
    let least = match how {
        Late::Fail => steps,
        Late::FewerSteps | Late::Estimate => 1,
    };
    if !fits(least) {
        return Err(late("before it was begun", expected.total(least), deadline));
    }
    match how {
        Late::FewerSteps => Ok((1..=steps).rev().find(|&steps| fits(steps)).unwrap_or(1)),
        _ => Ok(steps),
    }
}

/// Watches a picture that is drawn.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub deadline: Option<Duration>,
    pub late: Late,
    pub expected: Option<Parts>,
    /// The last step to be done, by the request's wish.
    pub steps: usize,
    /// Milliseconds from the request on at which each step so far was to be enqueued.
    begun: Vec<f64>,
}

impl Watch {
    /// Of a picture of which `steps` steps shall be done.
    pub fn new(deadline: Option<Duration>, late: Late, expected: Option<Parts>, steps: usize) -> Watch {
        Watch { deadline, late, expected, steps, begun: Vec::with_capacity(steps) }
    }

    /// Whether step `index`, which is enqueued now, `now_ms` after the request came, is the last. The step before has just begun, if
    /// there is one: the host is one step ahead.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the picture would come too late and shall not.
    pub fn is_last(&mut self, index: usize, now_ms: f64) -> Result<bool> {
        self.begun.push(now_ms);
        let is_last = index + 1 >= self.steps;
        let Some((deadline, expected)) = self.deadline.zip(self.expected_at(index)) else {
            return Ok(is_last);
        };
        let in_flight = match index {
            // It began with the request.
            0 => (expected.before - now_ms).max(0.0),
            1 => expected.first,
            _ => expected.step,
        };
        // From now on, of a picture with so many more steps.
        let needs = |steps: usize| {
            let first = if index == 0 { expected.first - expected.step } else { 0.0 };
            now_ms + in_flight + first + expected.step * steps as f64 + expected.after
        };
        match self.late {
            Late::Estimate => Ok(is_last || needs(2) > ms(deadline)),
            Late::Fail | Late::FewerSteps => {
                let needed = needs(self.steps.saturating_sub(index));
                if needed > ms(deadline) * (1.0 + SLACK) {
                    return Err(late(&format!("before step {}", index + 1), needed, deadline));
                }
                Ok(is_last)
            }
        }
    }

    /// What was known before, or what has been seen by now. Whatever makes steps slower than they were, as another program on the
    /// card, makes those that follow slower, too.
    fn expected_at(&self, index: usize) -> Option<Parts> {
        // From enqueuing a step to enqueuing the next the one before the first of them ran.
        let seen = self.begun.windows(2).skip(1).map(|pair| pair[1] - pair[0]).next_back();
        match (self.expected, seen) {
            (Some(known), Some(seen)) if index > 2 => Some(Parts { step: known.step.max(seen), ..known }),
            (Some(known), _) => Some(known),
            // The decoder takes about a step's time.
            (None, Some(seen)) => Some(Parts { before: 0.0, first: seen, step: seen, after: seen }),
            (None, None) => None,
        }
    }
}

/// Whether a run is in time, and what it does if not.
pub(super) struct Pace<'a> {
    pub watch: Watch,
    /// When the request came.
    pub started: Instant,
    /// Noise levels of the steps.
    pub sigmas: &'a [f32],
    /// Steps that were done.
    pub done: usize,
}

impl Pace<'_> {
    /// The noise level before a step.
    pub fn sigma(&self, step: usize) -> f32 {
        self.sigmas.get(step).copied().unwrap_or_default()
    }

    /// Whether the next step is the last.
    pub fn is_last(&mut self, index: usize) -> Result<bool> {
        self.done = index + 1;
        self.watch.is_last(index, self.started.elapsed().as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Shape;
    use crate::pipeline::times::Times;
    use crate::pipeline::timing::{StageTime, Timings};
    use crate::program::Run;

    /// xorshift64*.
    struct Random(u64);

    impl Random {
        fn unit(&mut self) -> f64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
        }

        /// Near 1, as times of the same work are.
        fn jitter(&mut self) -> f64 {
            1.0 + 0.04 * (self.unit() + self.unit() + self.unit() - 1.5)
        }
    }

    /// A machine on a simulated clock.
    struct Machine {
        random: Random,
        usual: Parts,
        times: Times,
    }

    /// How a picture ended, and when.
    #[derive(Debug)]
    enum End {
        Refused,
        GivenUp,
        Drawn { steps: usize, ms: f64 },
    }

    impl Machine {
        /// That has drawn a few pictures.
        fn new(seed: u64, usual: Parts) -> Machine {
            let mut machine = Machine { random: Random(seed), usual, times: Times::default() };
            for _ in 0..3 {
                machine.draw(None, Late::Fail, 4, |_| 1.0);
            }
            machine
        }

        /// What each part of the next picture takes: before, steps, after.
        fn parts(&mut self, steps: usize, slower: fn(usize) -> f64) -> (f64, Vec<f64>, f64) {
            let usual = self.usual;
            let mut part = |ms: f64| ms * self.random.jitter();
            let before = part(usual.before);
            let each = (0..steps).map(|i| part(if i == 0 { usual.first } else { usual.step }) * slower(i));
            let each = each.collect();
            (before, each, part(usual.after))
        }

        fn draw(
            &mut self,
            deadline: Option<Duration>,
            how: Late,
            steps: usize,
            slower: fn(usize) -> f64,
        ) -> (End, f64) {
            let (before, each, after) = self.parts(steps, slower);
            let whole = before + each.iter().sum::<f64>() + after;
            let shape = Shape { steps, ..Shape::default() };
            let expected = self.times.expected(&shape, Run::Fresh);
            let steps = match deadline.zip(expected) {
                Some((deadline, expected)) => match admit(deadline, how, steps, &expected) {
                    Ok(steps) => steps,
                    Err(_) => return (End::Refused, whole),
                },
                None => steps,
            };
            let mut watch = Watch::new(deadline, how, expected, steps);
            // The host enqueues a step when the one before the last has ended.
            let (mut ends, mut done) = (vec![before], 0);
            for (i, ms) in each.iter().enumerate().take(steps) {
                let now = if i == 0 { 0.0 } else { ends[i - 1] };
                match watch.is_last(i, now) {
                    Err(_) => return (End::GivenUp, whole),
                    Ok(is_last) => {
                        ends.push(ends[i] + ms);
                        done += 1;
                        if is_last {
                            break;
                        }
                    }
                }
            }
            let total = ends[done] + after;
            if done == steps {
                let mut stages: Vec<(String, f64)> = vec![("t5".to_string(), before)];
                stages.extend(each.iter().take(done).enumerate().map(|(i, ms)| (format!("step {i}"), *ms)));
                stages.push(("vae".to_string(), after));
                let stages = stages.into_iter().map(|(stage, ms)| StageTime { stage, ms }).collect();
                let timings =
                    Timings { device: String::new(), driver: String::new(), stages, total_ms: total };
                self.times.learn(&Shape { steps, ..shape }, Run::Fresh, &timings, total);
            }
            (End::Drawn { steps: done, ms: total }, whole)
        }
    }

    /// Of the text encoders' share, of steps and of the decoder's, as on cards that there are.
    const MACHINES: [Parts; 3] = [
        Parts { before: 900.0, first: 2600.0, step: 2500.0, after: 1100.0 },
        Parts { before: 30.0, first: 66.0, step: 60.0, after: 20.0 },
        Parts { before: 4.0, first: 20.0, step: 20.0, after: 200.0 },
    ];

    #[test]
    fn none_is_late_by_a_tenth_and_none_is_refused_with_a_tenth_to_spare() {
        for (seed, usual) in MACHINES.into_iter().enumerate() {
            let mut machine = Machine::new(seed as u64 + 1, usual);
            let (mut refused, mut drawn) = (0, 0);
            for i in 0..200 {
                let steps = 1 + (machine.random.unit() * 8.0) as usize;
                let deadline = usual.total(steps) * (0.5 + machine.random.unit());
                let limit = Duration::from_secs_f64(deadline / 1e3);
                let (end, whole) = machine.draw(Some(limit), Late::Fail, steps, |_| 1.0);
                match end {
                    End::Drawn { ms, .. } => {
                        assert!(ms <= 1.1 * deadline, "{i}: {ms} ms, the deadline was {deadline}");
                        drawn += 1;
                    }
                    End::Refused => {
                        assert!(whole > 0.9 * deadline, "{i}: {whole} ms would do for {deadline}");
                        refused += 1;
                    }
                    End::GivenUp => panic!("{i}: begun and given up, though it was as long as ever"),
                }
            }
            assert!(refused > 50 && drawn > 50, "{refused} refused, {drawn} drawn");
        }
    }

    #[test]
    fn fewer_steps_are_as_many_as_there_is_time_for() {
        for (seed, usual) in MACHINES.into_iter().enumerate() {
            let mut machine = Machine::new(seed as u64 + 11, usual);
            let mut fewer = 0;
            for i in 0..200 {
                let steps = 1 + (machine.random.unit() * 8.0) as usize;
                let deadline = usual.total(steps) * (0.4 + 0.8 * machine.random.unit());
                let limit = Duration::from_secs_f64(deadline / 1e3);
                let (end, _) = machine.draw(Some(limit), Late::FewerSteps, steps, |_| 1.0);
                match end {
                    End::Drawn { steps: done, ms } => {
                        assert!(ms <= 1.1 * deadline, "{i}: {ms} ms, the deadline was {deadline}");
                        let more = usual.total(done + 1);
                        assert!(
                            done == steps || more > 0.9 * deadline,
                            "{i}: {done} of {steps}, {more} would do"
                        );
                        fewer += usize::from(done < steps);
                    }
                    End::Refused => assert!(usual.total(1) > 0.9 * deadline, "{i}: one step would do"),
                    End::GivenUp => panic!("{i}: given up"),
                }
            }
            assert!(fewer > 20, "{fewer}");
        }
    }

    /// Another program takes the card for itself behind the second step.
    #[test]
    fn a_card_that_becomes_slower_is_noticed() {
        let usual = MACHINES[1];
        let slower = |step: usize| if step < 2 { 1.0 } else { 3.0 };
        let mut machine = Machine::new(7, usual);
        let limit = Duration::from_secs_f64(usual.total(8) * 1.05 / 1e3);
        assert!(matches!(machine.draw(Some(limit), Late::Fail, 8, slower).0, End::GivenUp));
        let mut machine = Machine::new(7, usual);
        match machine.draw(Some(limit), Late::Estimate, 8, slower).0 {
            End::Drawn { steps, ms } => {
                // When the first slow step has been seen the next one is under way, and one more has to be the last.
                assert!((2..8).contains(&steps), "{steps}");
                assert!(ms <= usual.total(8) * 1.05 + 3.0 * usual.step * 1.1, "{ms}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_estimate_comes_in_time() {
        for (seed, usual) in MACHINES.into_iter().enumerate() {
            let mut machine = Machine::new(seed as u64 + 21, usual);
            for i in 0..200 {
                let steps = 1 + (machine.random.unit() * 8.0) as usize;
                let deadline = usual.total(steps) * (0.4 + 0.8 * machine.random.unit());
                let limit = Duration::from_secs_f64(deadline / 1e3);
                match machine.draw(Some(limit), Late::Estimate, steps, |_| 1.0).0 {
                    End::Drawn { steps: done, ms } => {
                        assert!(ms <= 1.1 * deadline, "{i}: {ms} ms, the deadline was {deadline}");
                        let more = usual.total(done + 1);
                        assert!(done == steps || more > 0.9 * deadline, "{i}: {done} of {steps}");
                    }
                    End::Refused => assert!(usual.total(1) > 0.9 * deadline, "{i}: one step would do"),
                    End::GivenUp => panic!("{i}: given up"),
                }
            }
        }
    }

    #[test]
    fn what_nobody_knows_is_begun_and_watched() {
        let mut watch = Watch::new(Some(Duration::from_millis(100)), Late::Fail, None, 4);
        assert!(!watch.is_last(0, 0.0).unwrap() && !watch.is_last(1, 10.0).unwrap());
        // A step takes 50 ms: two more and the decoder are too much.
        let error = watch.is_last(2, 60.0).unwrap_err();
        assert!(error.to_string().contains("before step 3"), "{error}");
        let mut watch = Watch::new(None, Late::Fail, None, 2);
        assert!(!watch.is_last(0, 0.0).unwrap() && watch.is_last(1, 1e9).unwrap());
    }
}
