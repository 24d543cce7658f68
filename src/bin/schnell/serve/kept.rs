//! What can be asked for again, in memory and within bounds: pictures behind links, and answers to requests with an idempotency key.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use uuid::Uuid;

use super::images::Picture;
use super::queue::Job;
use crate::service::refusal::Refusal;

/// Pictures, the newest, so many bytes of them, for so long.
#[derive(Debug)]
pub struct Kept {
    most_bytes: usize,
    time: Duration,
    pictures: Mutex<Pictures>,
}

#[derive(Debug, Default)]
struct Pictures {
    by_id: HashMap<Uuid, Arc<Picture>>,
    /// The oldest first.
    order: VecDeque<(Instant, Uuid)>,
    bytes: usize,
}

impl Pictures {
    fn drop_oldest(&mut self) {
        if let Some((_, id)) = self.order.pop_front()
            && let Some(picture) = self.by_id.remove(&id)
        {
            self.bytes -= picture.file.len();
        }
    }
}

impl Kept {
    pub fn new(most_bytes: usize, time: Duration) -> Kept {
        Kept { most_bytes, time, pictures: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Pictures> {
        let mut pictures = self.pictures.lock().unwrap_or_else(PoisonError::into_inner);
        while pictures.order.front().is_some_and(|(since, _)| since.elapsed() > self.time) {
            pictures.drop_oldest();
        }
        pictures
    }

    /// Room is made by what is oldest. Putting a picture again changes nothing.
    pub fn put(&self, picture: &Arc<Picture>) {
        let mut pictures = self.lock();
        if pictures.by_id.contains_key(&picture.id) {
            return;
        }
        pictures.bytes += picture.file.len();
        pictures.by_id.insert(picture.id, picture.clone());
        pictures.order.push_back((Instant::now(), picture.id));
        while pictures.bytes > self.most_bytes {
            pictures.drop_oldest();
        }
    }

    pub fn get(&self, id: Uuid) -> Option<Arc<Picture>> {
        self.lock().by_id.get(&id).cloned()
    }

    /// Pictures, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let pictures = self.lock();
        (pictures.order.len(), pictures.bytes)
    }
}

/// Keys that are remembered at most, whatever their answers weigh.
const MOST_KEYS: usize = 1024;

/// Jobs by idempotency key.
#[derive(Debug)]
pub struct Repeats {
    most_bytes: usize,
    time: Duration,
    entries: Mutex<HashMap<[u8; 32], Entry>>,
}

#[derive(Debug)]
struct Entry {
    /// Of the request's body.
    body: [u8; 32],
    job: Arc<Job>,
    since: Instant,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.job.status().borrow().done.iter().map(|picture| picture.file.len()).sum()
    }

    /// What failed may go otherwise the next time.
    fn has_failed(&self) -> bool {
        matches!(self.job.status().borrow().end, Some(Err(_)))
    }
}

impl Repeats {
    pub fn new(most_bytes: usize, time: Duration) -> Repeats {
        Repeats { most_bytes, time, entries: Mutex::default() }
    }

    /// The job of that key, if there is one, and that it was there; else the one that `make` makes.
    ///
    /// # Errors
    /// For a key that came with another body, and those of `make`.
    pub fn admit(
        &self,
        key: [u8; 32],
        body: [u8; 32],
        make: impl FnOnce() -> Result<Arc<Job>, Refusal>,
    ) -> Result<(Arc<Job>, bool), Refusal> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| !entry.has_failed() && entry.since.elapsed() <= self.time);
        if let Some(entry) = entries.get(&key) {
            if entry.body == body {
                return Ok((entry.job.clone(), true));
            }
            let text = "this Idempotency-Key came with another body before; use a new key for a new request";
            // Not 409, at which clients try again by themselves.
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", text));
        }
        self.make_room(&mut entries);
        let job = make()?;
        entries.insert(key, Entry { body, job: job.clone(), since: Instant::now() });
        Ok((job, false))
    }

    /// What is oldest of what has ended goes; what has not is bounded by the queue.
    fn make_room(&self, entries: &mut HashMap<[u8; 32], Entry>) {
        let mut bytes: usize = entries.values().map(Entry::bytes).sum();
        while entries.len() >= MOST_KEYS || bytes > self.most_bytes {
            let ended = entries.iter().filter(|(_, entry)| entry.job.has_ended());
            let Some(oldest) = ended.min_by_key(|(_, entry)| entry.since).map(|(key, _)| *key) else {
                return;
            };
            bytes -= entries.remove(&oldest).map_or(0, |entry| entry.bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::refused::draining;
    use super::*;
    use schnell::{ImageFormat, Request, Shape};

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn the_newest_pictures_are_kept_within_their_bytes_and_time() {
        let kept = Kept::new(10, LONG);
        let pictures = [4, 4, 4, 11].map(Picture::of_bytes);
        let there = || pictures.iter().map(|picture| kept.get(picture.id).is_some()).collect::<Vec<_>>();
        pictures[..2].iter().for_each(|picture| kept.put(picture));
        kept.put(&pictures[1]);
        assert_eq!((kept.size(), there()), ((2, 8), vec![true, true, false, false]));
        kept.put(&pictures[2]);
        assert_eq!((kept.size(), there()), ((2, 8), vec![false, true, true, false]));
        // What is too large alone drives out all, and is not kept either.
        kept.put(&pictures[3]);
        assert_eq!((kept.size(), there()), ((0, 0), vec![false; 4]));
        let brief = Kept::new(10, Duration::from_millis(1));
        brief.put(&pictures[0]);
        std::thread::sleep(Duration::from_millis(5));
        assert!(brief.get(pictures[0].id).is_none() && brief.size() == (0, 0));
    }

    fn job() -> Arc<Job> {
        Arc::new(Job::new(vec![Request::new("a red circle")], Shape::square(64), ImageFormat::Png, 0))
    }

    /// Whether it was there.
    fn admit(repeats: &Repeats, key: u8, job: &Arc<Job>) -> bool {
        repeats.admit([key; 32], [0; 32], || Ok(job.clone())).unwrap().1
    }

    #[test]
    fn answers_are_remembered_within_their_bytes_and_failures_are_not() {
        let repeats = Repeats::new(10, LONG);
        let jobs: Vec<Arc<Job>> = (0..4).map(|_| job()).collect();
        for key in 0..3 {
            assert!(!admit(&repeats, key, &jobs[usize::from(key)]));
            jobs[usize::from(key)].add(Picture::of_bytes(6));
        }
        jobs[0].end(Ok(()));
        jobs[1].end(Ok(()));
        // The third has not ended, and stays, whatever it weighs.
        assert!(!admit(&repeats, 3, &jobs[3]));
        assert!(admit(&repeats, 2, &jobs[0]) && admit(&repeats, 3, &jobs[0]));
        assert!(!admit(&repeats, 0, &job()) && !admit(&repeats, 1, &job()));
        jobs[3].end(Err(draining()));
        assert!(!admit(&repeats, 3, &job()));
        let other = repeats.admit([2; 32], [1; 32], || Ok(job())).unwrap_err();
        assert_eq!(other.code, "idempotency_key_reused");
        // What is not taken in is not remembered.
        let refused = || Err(draining());
        assert_eq!(repeats.admit([9; 32], [0; 32], refused).unwrap_err().code, "draining");
        assert!(!admit(&repeats, 9, &job()));
    }
}
