//! One file, from the hub into the cache: what has arrived is gone on with, what does not come is waited for and asked for
//! again, and nothing gets its name before its size and digest are right.

use std::fs::{File, OpenOptions};
use std::hash::BuildHasher;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::http::{Asked, Client, Failure};
use super::listing::{Digest, Wanted};
use super::store::{Store, disk};
use crate::{Error, Result};

/// Failures in a row, with nothing of use in between, that are forgiven.
const MOST_FAILURES: u32 = 4;
/// What counts as something of use: less would let a server keep us for ever.
const PROGRESS_BYTES: u64 = 1 << 16;
const MOST_BACK_OFF: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 1 << 18;

/// Who is told of bytes and of waiting, and may stop it.
pub(super) trait Listener {
    /// `bytes` of the file that is being fetched are here.
    fn arrived(&mut self, bytes: u64) -> Result<()>;
    /// Nothing arrives, but somebody may want to stop it.
    fn idle(&mut self) -> Result<()>;
    /// In words, why nothing arrives.
    fn note(&mut self, text: &str) -> Result<()>;
}

/// What a file's bytes are checked against, as they come.
enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    fn new(wanted: &Wanted) -> Hasher {
        match wanted.digest {
            Digest::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Digest::GitBlob(_) => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {}\0", wanted.bytes))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hash) => hash.update(bytes),
            Hasher::GitBlob(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Hasher::Sha256(hash) => hex(&hash.finalize()),
            Hasher::GitBlob(hash) => hex(&hash.finalize()),
        }
    }
}

/// Bytes whose digest takes long enough to be spoken of.
const MANY_BYTES: u64 = 1 << 30;

/// Whether the blob of `wanted`, which has its size, has its digest, too.
pub(super) fn is_intact(store: &Store, wanted: &Wanted, listener: &mut dyn Listener) -> Result<bool> {
    let path = store.blob(&wanted.digest);
    let mut file = File::open(&path).map_err(disk("read", &path))?;
    let mut hasher = Hasher::new(wanted);
    listener.arrived(wanted.bytes)?;
    let bytes = hash_all(&mut file, &path, &mut hasher, listener)?;
    Ok(bytes == wanted.bytes && hasher.finish() == wanted.digest.hex())
}

fn hash_all(file: &mut File, path: &Path, hasher: &mut Hasher, listener: &mut dyn Listener) -> Result<u64> {
    let (mut chunk, mut bytes) = (vec![0; CHUNK_BYTES], 0);
    loop {
        match file.read(&mut chunk).map_err(disk("read", path))? {
            0 => return Ok(bytes),
            n => {
                hasher.update(&chunk[..n]);
                bytes += n as u64;
                listener.idle()?;
            }
        }
    }
}

/// The beginning of a file, and what is known of its bytes.
struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
    hasher: Hasher,
}

impl Partial {
    /// What has arrived before, looked through once. The lock is held.
    fn open(store: &Store, wanted: &Wanted, listener: &mut dyn Listener) -> Result<Partial> {
        let path = store.partial(&wanted.digest);
        let open = || {
            let mut options = OpenOptions::new();
            // No link and no FIFO is followed: our own partial files are regular.
            options.create(true).read(true).append(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            options.open(&path)
        };
        let is_regular =
            |file: &File| file.metadata().is_ok_and(|found| found.is_file() && found.len() <= wanted.bytes);
        let mut file = match open() {
            Ok(file) if is_regular(&file) => file,
            // Another's, or longer than it may be.
            Ok(_) => {
                std::fs::remove_file(&path).map_err(disk("remove", &path))?;
                open().map_err(disk("write", &path))?
            }
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
                std::fs::remove_file(&path).map_err(disk("remove", &path))?;
                open().map_err(disk("write", &path))?
            }
            Err(e) => return Err(disk("write", &path)(e)),
        };
        let here = file.metadata().map_err(disk("read", &path))?.len();
        listener.arrived(here)?;
        if here >= MANY_BYTES {
            listener.note(&format!("{}: looking through what is here of it", wanted.path))?;
        }
        let mut hasher = Hasher::new(wanted);
        let bytes = hash_all(&mut file, &path, &mut hasher, listener)?;
        Ok(Partial { path, file, bytes, hasher })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        // What was written of it when this fails has not been hashed: whoever goes on begins by that.
        self.file.write_all(bytes).map_err(disk("write", &self.path))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// From the first byte again.
    fn clear(&mut self, wanted: &Wanted) -> Result<()> {
        self.file.set_len(0).map_err(disk("write", &self.path))?;
        (self.bytes, self.hasher) = (0, Hasher::new(wanted));
        Ok(())
    }
}

/// Brings files into a cache.
pub(super) struct Transfer<'a> {
    pub client: &'a Client<'a>,
    pub store: &'a Store,
    pub asked: Asked<'a>,
    pub back_off: Duration,
}

impl Transfer<'_> {
    /// `wanted` as a blob of the cache, from `path` below the endpoint.
    pub(super) fn fetch(&self, wanted: &Wanted, path: &str, listener: &mut dyn Listener) -> Result<()> {
        if self.store.has(wanted) {
            return listener.arrived(wanted.bytes);
        }
        let mut told = false;
        let _lock = self.store.lock(&wanted.digest, || {
            if !std::mem::replace(&mut told, true) {
                listener.note(&format!("{}: another process fetches it; waiting", wanted.path))?;
            }
            listener.arrived(self.store.arrived(wanted))
        })?;
        if self.store.has(wanted) {
            return listener.arrived(wanted.bytes);
        }
        for attempt in 0..2 {
            let mut partial = Partial::open(self.store, wanted, listener)?;
            self.receive(wanted, path, &mut partial, listener)?;
            let Partial { file, hasher, path, .. } = partial;
            let found = hasher.finish();
            if found == wanted.digest.hex() {
                return self.store.publish(&wanted.digest, &file);
            }
            std::fs::remove_file(&path).map_err(disk("remove", &path))?;
            listener.arrived(0)?;
            if attempt == 0 {
                let text =
                    format!("{}: its digest is {found}, expected {}", wanted.path, wanted.digest.hex());
                listener.note(&format!("{text}; thrown away, fetching it again"))?;
            }
        }
        Err(Error::network(format!(
            "{} has arrived twice with another digest than the hub gives, {}, and was thrown away; a proxy may change it",
            wanted.path,
            wanted.digest.hex()
        )))
    }

    /// All bytes of `wanted`, whatever happens on the way.
    fn receive(
        &self,
        wanted: &Wanted,
        path: &str,
        partial: &mut Partial,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let (mut failures, mut most) = (0, partial.bytes);
        while partial.bytes < wanted.bytes {
            let failure = match self.receive_once(wanted, path, partial, listener) {
                Ok(()) => continue,
                Err(failure) => failure,
            };
            // Beyond what there ever was: a file that always ends too soon is begun anew again and again.
            failures = if partial.bytes >= most + PROGRESS_BYTES { 1 } else { failures + 1 };
            most = most.max(partial.bytes);
            if partial.bytes < wanted.bytes || matches!(failure, Failure::Final(_)) {
                self.wait(failure, failures, &wanted.path, listener)?;
            }
        }
        Ok(())
    }

    /// One answer's bytes.
    fn receive_once(
        &self,
        wanted: &Wanted,
        path: &str,
        partial: &mut Partial,
        listener: &mut dyn Listener,
    ) -> Result<(), Failure> {
        let (mut body, start) = match self.client.get(self.asked, path, partial.bytes) {
            Err(Failure::PastTheEnd { what }) => {
                partial.clear(wanted)?;
                return Err(Failure::passing(what));
            }
            answer => answer?,
        };
        // A server that knows no parts begins at the beginning: what is here already is passed over.
        let mut skip = match partial.bytes.checked_sub(start) {
            Some(skip) => skip,
            None => {
                return Err(Failure::passing(format!("asked for byte {}, got {start}", partial.bytes)));
            }
        };
        if let Some(length) = body.content_length()
            && start.checked_add(length) != Some(wanted.bytes)
        {
            let what =
                format!("the server sends {start} + {length} bytes, but the hub lists {}", wanted.bytes);
            return Err(Failure::passing(what));
        }
        let (mut reader, mut chunk) = (body.as_reader(), vec![0; CHUNK_BYTES]);
        loop {
            let read = match reader.read(&mut chunk) {
                Ok(0) if partial.bytes == wanted.bytes => return Ok(()),
                Ok(0) => {
                    let what = format!("it ended after {} of {} bytes", partial.bytes, wanted.bytes);
                    return Err(Failure::passing(what));
                }
                Ok(read) => read,
                Err(e) => return Err(self.client.cut_off(path, e)),
            };
            let passed = skip.min(read as u64);
            skip -= passed;
            let fresh = &chunk[passed as usize..read];
            if partial.bytes + fresh.len() as u64 > wanted.bytes {
                partial.clear(wanted)?;
                let what = format!("it goes on after the {} bytes that the hub lists", wanted.bytes);
                return Err(Failure::passing(what));
            }
            partial.append(fresh)?;
            listener.arrived(partial.bytes)?;
        }
    }

    /// Whatever `ask` asks for, as often as makes sense.
    pub(super) fn patiently<T>(
        &self,
        what: &str,
        listener: &mut dyn Listener,
        mut ask: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                // Who has no network wants to know now.
                Err(failure @ Failure::Passing { is_unreachable: true, .. }) => {
                    return Err(failure.into_error(what, self.asked.id));
                }
                Err(failure) => {
                    failures += 1;
                    self.wait(failure, failures, what, listener)?;
                }
            }
        }
    }

    /// Until it makes sense to ask again; an error when it makes none.
    fn wait(&self, failure: Failure, failures: u32, what: &str, listener: &mut dyn Listener) -> Result<()> {
        let (text, asked_for) = match &failure {
            Failure::Passing { what, wait, .. } if failures <= MOST_FAILURES => (what.clone(), *wait),
            _ => return Err(failure.into_error(what, self.asked.id)),
        };
        let doubled = self.back_off.saturating_mul(1 << (failures - 1).min(16)).min(MOST_BACK_OFF);
        // Up to a quarter more, so that not everybody comes back at once.
        let jitter = std::hash::RandomState::new().hash_one(()) as f64 / u64::MAX as f64 / 4.0;
        let wait = asked_for.unwrap_or_default().max(doubled.mul_f64(1.0 + jitter));
        listener.note(&format!("{what}: {text}; asking again in {:.1} s", wait.as_secs_f64()))?;
        let until = Instant::now() + wait;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::sleep(left.min(Duration::from_millis(100)));
            listener.idle()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum_and_git() {
        let digest = |digest: &str| {
            let wanted = Wanted { path: String::new(), bytes: 6, digest: Digest::new(digest).unwrap() };
            let mut hasher = Hasher::new(&wanted);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            hasher.finish()
        };
        // `echo hello | sha256sum`, `echo hello | git hash-object --stdin`
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(digest(sha256), sha256);
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(digest(git), git);
    }
}
