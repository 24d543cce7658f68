//! What waits to be drawn, and what is said of it meanwhile.
//!
//! A job is what one request wants: a few pictures, one after the other. It is told of by a `watch` channel, of which a client that reads
//! slowly misses what is past, so that nothing piles up for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use schnell::{ImageFormat, Preview, Request, Shape};
use tokio::sync::watch;

use super::images::Picture;
use super::refused::draining;
use crate::service::now;
use crate::service::refusal::Refusal;

/// How far a job has come.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub stage: Stage,
    /// What the picture looks like so far that is being drawn.
    pub preview: Option<Seen>,
    /// Files of the first pictures, in order.
    pub done: Vec<Arc<Picture>>,
    /// Nothing comes after it.
    pub end: Option<Result<(), Refusal>>,
}

/// What one step takes for the picture in the end.
#[derive(Clone, Debug)]
pub struct Seen {
    pub picture: usize,
    /// From 0, of those that were asked for.
    pub number: usize,
    pub preview: Arc<Preview>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// So many pictures come before.
    Waiting(usize),
    #[default]
    Begun,
    Text {
        picture: usize,
    },
    /// `step` from 1.
    Step {
        picture: usize,
        step: usize,
        steps: usize,
    },
    Decoding {
        picture: usize,
    },
}

/// What one request wants.
#[derive(Debug)]
pub struct Job {
    pub requests: Vec<Request>,
    pub shape: Shape,
    pub format: ImageFormat,
    /// Of each picture.
    pub previews: usize,
    pub arrived: Instant,
    /// Seconds since 1970.
    pub created: u64,
    /// When all pictures have to be there.
    pub deadline: Option<Duration>,
    /// Of all its pictures, if anything is known.
    pub expected: Option<Duration>,
    cancelled: AtomicBool,
    status: watch::Sender<Status>,
}

impl Job {
    pub fn new(requests: Vec<Request>, shape: Shape, format: ImageFormat, previews: usize) -> Job {
        let deadline = requests.first().and_then(|request| request.deadline);
        Job {
            requests,
            shape,
            format,
            previews,
            arrived: Instant::now(),
            created: now(),
            deadline,
            expected: None,
            cancelled: AtomicBool::new(false),
            status: watch::Sender::new(Status::default()),
        }
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether there is nothing more to come.
    pub fn has_ended(&self) -> bool {
        self.status.borrow().end.is_some()
    }

    pub fn set_stage(&self, stage: Stage) {
        self.status.send_modify(|status| status.stage = stage);
    }

    /// Of those that were asked for, the steps of a picture evenly; the others are not shown.
    pub fn show(&self, picture: usize, preview: Preview) {
        let number = |step: usize| step * self.previews.min(self.shape.steps) / self.shape.steps.max(1);
        let before = number(preview.step);
        if number(preview.step + 1) > before {
            let seen = Seen { picture, number: before, preview: Arc::new(preview) };
            self.status.send_modify(|status| status.preview = Some(seen));
        }
    }

    pub fn add(&self, picture: Arc<Picture>) {
        self.status.send_modify(|status| status.done.push(picture));
    }

    /// The first end counts.
    pub fn end(&self, end: Result<(), Refusal>) {
        self.status.send_modify(|status| _ = status.end.get_or_insert(end));
    }
}

/// Jobs in the order in which they came.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Of pictures that wait.
    most: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<Job>>,
    /// What is being drawn, and since when.
    current: Option<(Arc<Job>, Instant)>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Loading,
    Ready,
    /// Nothing new is taken.
    Draining,
}

impl State {
    fn pictures(&self) -> usize {
        self.waiting.iter().map(|job| job.requests.len()).sum()
    }

    /// Until what is being drawn is done, as far as is known.
    fn rest_of_current(&self) -> Duration {
        let rest = self
            .current
            .as_ref()
            .and_then(|(job, begun)| Some(job.expected?.saturating_sub(begun.elapsed())));
        rest.unwrap_or_default()
    }

    /// Until all that is there is done, as far as is known.
    fn wait(&self) -> Duration {
        let waiting = self.waiting.iter().filter_map(|job| job.expected);
        waiting.fold(self.rest_of_current(), Duration::saturating_add)
    }

    fn tell_places(&self) {
        let mut before = self.current.as_ref().map_or(0, |(job, _)| job.requests.len());
        for job in &self.waiting {
            job.set_stage(Stage::Waiting(before));
            before += job.requests.len();
        }
    }
}

impl Queue {
    /// With room for so many pictures.
    pub fn new(most: usize) -> Queue {
        Queue { state: Mutex::default(), changed: Condvar::new(), most }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job in, which is expected to take `expected` if anything is known of its size; `least` is that of the least that would do for its deadline.
    ///
    /// # Errors
    /// Before the model is there, while draining, when there is no room, and when the deadline would be missed.
    pub fn push(
        &self,
        mut job: Job,
        expected: Option<Duration>,
        least: Option<Duration>,
    ) -> Result<Arc<Job>, Refusal> {
        let mut state = self.lock();
        match state.phase {
            Phase::Ready => {}
            Phase::Loading => {
                let text = "the model is being loaded; ask again once /readyz says 200";
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "loading", text)
                    .retry_after(Duration::from_secs(5)));
            }
            Phase::Draining => return Err(draining()),
        }
        let (waiting, more) = (state.pictures(), job.requests.len());
        if waiting + more > self.most {
            let text = format!(
                "{waiting} pictures wait, and there is room for {}, not for {more} more; ask again later",
                self.most
            );
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", text)
                .retry_after(state.rest_of_current()));
        }
        if let Some((deadline, least)) = job.deadline.zip(least) {
            check_deadline(deadline, least, state.wait())?;
        }
        job.expected = expected;
        let job = Arc::new(job);
        state.waiting.push_back(job.clone());
        state.tell_places();
        self.changed.notify_one();
        Ok(job)
    }

    /// The next job, once there is one; nothing once there will be none.
    pub fn next(&self) -> Option<Arc<Job>> {
        let mut state = self.lock();
        state.current = None;
        loop {
            if let Some(job) = state.waiting.pop_front() {
                job.set_stage(Stage::Begun);
                state.current = Some((job.clone(), Instant::now()));
                state.tell_places();
                return Some(job);
            }
            if state.phase == Phase::Draining {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nobody wants it any more: it leaves its place, or is stopped at its next step.
    pub fn cancel(&self, job: &Arc<Job>) {
        job.cancelled.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        let before = state.waiting.len();
        state.waiting.retain(|other| !Arc::ptr_eq(other, job));
        if state.waiting.len() < before {
            state.tell_places();
            drop(state);
            job.end(Err(Refusal::of(&schnell::Error::Stopped)));
        }
    }

    /// All that waits ends so.
    pub fn refuse_all(&self, refusal: &Refusal) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.iter().for_each(|job| job.end(Err(refusal.clone())));
    }

    pub fn set_ready(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Loading {
            state.phase = Phase::Ready;
        }
    }

    /// Nothing more is taken in; what was is drawn.
    pub fn drain(&self) {
        self.lock().phase = Phase::Draining;
        self.changed.notify_all();
    }

    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Pictures that wait, and whether one is being drawn.
    pub fn load(&self) -> (usize, bool) {
        let state = self.lock();
        (state.pictures(), state.current.is_some())
    }
}

/// # Errors
/// With 422 where no queue is to blame, with 503 and when to come again where one is.
fn check_deadline(deadline: Duration, least: Duration, wait: Duration) -> Result<(), Refusal> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let text = format!(
        "the pictures would take {:.0} ms behind {:.0} ms of waiting, and shall be there in {:.0} ms; allow more time, fewer \
         steps or a smaller picture",
        ms(least),
        ms(wait),
        ms(deadline)
    );
    if least > deadline {
        let code = "deadline_impossible";
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, code, text).param("deadline_ms"));
    }
    let needed = wait.saturating_add(least);
    if needed > deadline {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "deadline_exceeded", text)
            .param("deadline_ms")
            .retry_after(needed - deadline));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(pictures: usize, deadline: Option<u64>) -> Job {
        let mut request = Request::new("a red circle");
        request.deadline = deadline.map(Duration::from_secs);
        Job::new(vec![request; pictures], Shape::square(64), ImageFormat::Png, 0)
    }

    fn push(
        queue: &Queue,
        pictures: usize,
        seconds: u64,
        deadline: Option<u64>,
    ) -> Result<Arc<Job>, Refusal> {
        let expected = Some(Duration::from_secs(seconds));
        queue.push(job(pictures, deadline), expected, expected)
    }

    fn code(pushed: Result<Arc<Job>, Refusal>) -> &'static str {
        pushed.unwrap_err().code
    }

    #[test]
    fn room_is_counted_in_pictures_and_places_move_up() {
        let queue = Queue::new(4);
        assert_eq!(code(push(&queue, 1, 1, None)), "loading");
        queue.set_ready();
        let (first, second) = (push(&queue, 3, 1, None).unwrap(), push(&queue, 1, 1, None).unwrap());
        assert_eq!(code(push(&queue, 1, 1, None)), "queue_full");
        assert_eq!(second.status().borrow().stage, Stage::Waiting(3));
        queue.cancel(&first);
        assert!(first.has_ended() && first.is_cancelled());
        assert_eq!(second.status().borrow().stage, Stage::Waiting(0));
        assert!(Arc::ptr_eq(&queue.next().unwrap(), &second));
        // What is drawn takes no room, and stays until it sees that it is not wanted.
        queue.cancel(&second);
        assert!(!second.has_ended() && second.is_cancelled());
        push(&queue, 4, 1, None).unwrap();
        queue.drain();
        assert_eq!(code(push(&queue, 1, 1, None)), "draining");
        assert!(queue.next().is_some() && queue.next().is_none());
    }

    #[test]
    fn deadlines_are_held_against_what_waits() {
        let queue = Queue::new(16);
        queue.set_ready();
        push(&queue, 1, 10, None).unwrap();
        push(&queue, 1, 10, Some(21)).unwrap();
        assert_eq!(code(push(&queue, 1, 10, Some(25))), "deadline_exceeded");
        assert_eq!(code(push(&queue, 1, 10, Some(9))), "deadline_impossible");
        // Of what is being drawn the rest counts.
        queue.next().unwrap();
        assert_eq!(code(push(&queue, 1, 10, Some(25))), "deadline_exceeded");
        queue.next().unwrap();
        push(&queue, 1, 10, Some(25)).unwrap();
        // Of what nothing is known nothing is refused.
        queue.push(job(1, Some(1)), None, None).unwrap();
    }
}
