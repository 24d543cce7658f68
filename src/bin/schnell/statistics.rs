//! What many times of the same work say.

/// Percentiles that are shown.
pub const PERCENTILES: [(&str, f64); 5] =
    [("P50", 0.5), ("P90", 0.9), ("P95", 0.95), ("P99", 0.99), ("P99.9", 0.999)];

/// Of times in any order.
pub struct Summary {
    pub mean: f64,
    /// Of a sample: by one less than there are.
    pub deviation: f64,
    /// Of [`PERCENTILES`].
    pub percentiles: [f64; PERCENTILES.len()],
    pub slowest: f64,
    /// Above the third quartile by more than one and a half times what lies between the quartiles (Tukey's fences), or below
    /// the first.
    pub outliers: usize,
}

impl Summary {
    /// Nothing of nothing.
    pub fn of(times: &[f64]) -> Option<Summary> {
        let sorted = sorted(times);
        let slowest = *sorted.last()?;
        let count = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / count;
        let squares = sorted.iter().map(|time| (time - mean).powi(2)).sum::<f64>();
        let [first, third] = [0.25, 0.75].map(|share| percentile(&sorted, share));
        let fence = 1.5 * (third - first);
        Some(Summary {
            mean,
            deviation: (squares / (count - 1.0).max(1.0)).sqrt(),
            percentiles: PERCENTILES.map(|(_, share)| percentile(&sorted, share)),
            slowest,
            outliers: sorted.iter().filter(|time| **time > third + fence || **time < first - fence).count(),
        })
    }

    /// One of a hundred takes longer.
    pub fn p99(&self) -> f64 {
        self.percentiles[3]
    }
}

fn sorted(times: &[f64]) -> Vec<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// By nearest rank: a time that was measured, and of few times the slowest for a high percentile.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// What lies between two bounds with 95 % confidence.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    pub low: f64,
    pub middle: f64,
    pub high: f64,
}

/// Samples that the bootstrap draws.
const RESAMPLES: usize = 2000;

/// The median of `now` over that of `before`, by the bootstrap (Efron 1979): medians of samples that are drawn from the times, with
/// replacement. The same times give the same interval.
pub fn change_of_median(before: &[f64], now: &[f64]) -> Option<Interval> {
    let median = |times: &[f64]| percentile(&sorted(times), 0.5);
    if before.is_empty() || now.is_empty() || median(before) <= 0.0 {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(1);
    let mut draw = |times: &[f64]| -> f64 {
        median(&(0..times.len()).map(|_| times[random.usize(..times.len())]).collect::<Vec<_>>())
    };
    let ratios: Vec<f64> = (0..RESAMPLES).map(|_| draw(now) / draw(before)).collect();
    let ratios = sorted(&ratios);
    let middle = median(now) / median(before);
    Some(Interval { low: percentile(&ratios, 0.025), middle, high: percentile(&ratios, 0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        let summary = Summary::of(&times).unwrap();
        assert_eq!(summary.percentiles, [500.0, 900.0, 950.0, 990.0, 999.0]);
        assert_eq!((summary.mean, summary.slowest, summary.p99()), (500.5, 1000.0, 990.0));
        assert!((summary.deviation - 288.819).abs() < 1e-3);
        let few = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(few.percentiles, [2.0, 3.0, 3.0, 3.0, 3.0]);
        assert_eq!(Summary::of(&[7.0]).unwrap().deviation, 0.0);
        assert!(Summary::of(&[]).is_none());
    }

    #[test]
    fn outliers_are_beyond_the_fences() {
        let mut times = vec![10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0];
        assert_eq!(Summary::of(&times).unwrap().outliers, 0);
        times.extend([40.0, -9.0]);
        assert_eq!(Summary::of(&times).unwrap().outliers, 2);
    }

    /// Of 200 pairs of runs of the same work at most one in ten is said to differ, and of work that is 3 % slower nearly all are.
    #[test]
    fn the_interval_tells_a_change_from_chance() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut times = |scale: f64| -> Vec<f64> {
            // The sum of twelve is nearly normal; 2 % of deviation.
            (0..50)
                .map(|_| scale * (1.0 + 0.02 * ((0..12).map(|_| random.f64()).sum::<f64>() - 6.0)))
                .collect()
        };
        let (mut same, mut slower) = (0, 0);
        for _ in 0..200 {
            let before = times(100.0);
            let apart = |interval: Interval| interval.low > 1.0 || interval.high < 1.0;
            same += usize::from(apart(change_of_median(&before, &times(100.0)).unwrap()));
            slower += usize::from(change_of_median(&before, &times(103.0)).unwrap().low > 1.0);
        }
        assert!(same <= 20 && slower >= 190, "{same} {slower}");
        assert!(change_of_median(&[], &[1.0]).is_none());
    }
}
