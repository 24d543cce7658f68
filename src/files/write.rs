//! Where output goes: tried before the work, written after it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::temporary::Temporary;
use crate::image::ImageFormat;
use crate::{Error, Result};

/// As many links as Linux follows.
const MAX_LINKS: usize = 40;

/// A place that can be written to, as far as can be told beforehand.
#[derive(Debug)]
pub struct Target {
    /// As the user says it.
    name: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Standard output, and `/dev/stdout`.
    Stdout,
    /// What is written through: devices, FIFOs, other open files of this process. Opened before the work.
    Through(File),
    /// A regular file, there or not: its folder without links, and its name there.
    Regular(PathBuf),
}

impl Target {
    /// Standard output.
    pub fn stdout() -> Target {
        Target { name: PathBuf::from("standard output"), place: Place::Stdout }
    }

    /// Looks where `path` leads and tries what [`Target::write`] will do, leaving everything as it is. A device or FIFO is
    /// opened and stays so.
    ///
    /// # Errors
    /// [`Error::Input`] for a folder; [`Error::Io`] when it could not be written, as a FIFO that nobody reads.
    pub fn new(path: &Path) -> Result<Target> {
        let failed = |source| Error::io("write", path)(source);
        let target = |place| Ok(Target { name: path.to_path_buf(), place });
        let folder = || Err(Error::Input(format!("{} is a folder; name a file", path.display())));
        if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return folder();
        }
        let end = follow(path).map_err(failed)?;
        if let Some(descriptor) = own_descriptor(&end) {
            return target(match descriptor {
                1 => Place::Stdout,
                // It may be a file that the shell has begun to write.
                _ => Place::Through(OpenOptions::new().append(true).open(&end).map_err(failed)?),
            });
        }
        let found = match end.symlink_metadata() {
            Ok(found) => Some(found),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(failed(e)),
        };
        match &found {
            Some(found) if found.is_dir() => return folder(),
            Some(found) if !found.is_file() => {
                let unread = found.file_type().is_fifo();
                let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&end);
                return target(Place::Through(opened.map_err(|e| match e.raw_os_error() {
                    Some(libc::ENXIO) if unread => {
                        failed(std::io::Error::other("nobody reads this FIFO; start its reader first"))
                    }
                    _ => failed(e),
                })?));
            }
            _ => {}
        }
        try_to_replace(&end, found.as_ref()).map_err(failed)?;
        target(Place::Regular(end))
    }

    /// As the user says it.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Whether it is a file with a name, rather than a device or a pipe.
    pub fn is_regular(&self) -> bool {
        matches!(self.place, Place::Regular(_))
    }

    /// What a picture becomes that is written here.
    ///
    /// # Errors
    /// [`Error::Input`] for a regular file whose name ends in no format.
    pub fn image_format(&self) -> Result<ImageFormat> {
        match ImageFormat::of(&self.name) {
            Some(format) => Ok(format),
            // What is no regular file needs no ending.
            None if !self.is_regular() => Ok(ImageFormat::Png),
            None => Err(Error::Input(format!(
                "{}: pictures are PNG, JPEG or WebP; use a name that ends in .png, .jpg or .webp",
                self.name.display()
            ))),
        }
    }

    /// Where a regular file is or will be, without links.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Regular(path) => Some(path),
            _ => None,
        }
    }

    /// Whether what is written here would replace, or be mixed with, what is written there. Devices take it all.
    pub fn is_same(&self, other: &Target) -> bool {
        match (&self.place, &other.place) {
            (Place::Stdout, Place::Stdout) => true,
            (Place::Regular(a), Place::Regular(b)) => a == b || self.is_file(b),
            (Place::Through(a), Place::Through(b)) => {
                let both = a.metadata().ok().zip(b.metadata().ok());
                both.is_some_and(|(a, b)| !a.file_type().is_char_device() && identity(&a) == identity(&b))
            }
            _ => false,
        }
    }

    /// Whether this is the file to which `path` leads, if there is one.
    pub fn is_file(&self, path: &Path) -> bool {
        let here = match &self.place {
            Place::Regular(here) => here.symlink_metadata(),
            Place::Through(file) => file.metadata(),
            Place::Stdout => return false,
        };
        here.ok().zip(path.metadata().ok()).is_some_and(|(a, b)| a.is_file() && identity(&a) == identity(&b))
    }

    /// Writes `bytes`: whoever looks at a regular file sees the old one, or all of the new one.
    ///
    /// # Errors
    /// [`Error::Io`]; then a regular file is as it was, and nothing is left beside it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.prepare(bytes)?.finish()
    }

    /// All of [`Target::write`] that is likely to fail; [`Prepared::finish`] is the rest.
    fn prepare<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Prepared<'a>> {
        let temporary = match &self.place {
            Place::Regular(path) => Some(temporary(path, bytes).map_err(Error::io("write", &self.name))?),
            _ => None,
        };
        Ok(Prepared { target: self, bytes, temporary })
    }

    /// Writes all or none, as far as regular files go.
    ///
    /// # Errors
    /// [`Error::Io`], as of [`Target::write`].
    pub fn write_all(outputs: &mut [(Target, Vec<u8>)]) -> Result<()> {
        let prepared: Vec<Prepared> =
            outputs.iter_mut().map(|(target, bytes)| target.prepare(bytes)).collect::<Result<_>>()?;
        prepared.into_iter().try_for_each(Prepared::finish)
    }
}

struct Prepared<'a> {
    target: &'a mut Target,
    bytes: &'a [u8],
    temporary: Option<Temporary>,
}

impl Prepared<'_> {
    fn finish(self) -> Result<()> {
        let written = match (&mut self.target.place, self.temporary) {
            (Place::Regular(path), Some(temporary)) => temporary.rename(path),
            (Place::Through(file), _) => write_through(file, self.bytes),
            _ => {
                let mut out = std::io::stdout().lock();
                out.write_all(self.bytes).and_then(|()| out.flush())
            }
        };
        written.map_err(Error::io("write", &self.target.name))
    }
}

/// A file that is written piece by piece, and has its name when it is whole.
#[derive(Debug)]
pub struct Growing {
    path: PathBuf,
    temporary: Temporary,
    file: File,
}

impl Growing {
    /// In place of `path`, in its folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(path: &Path) -> Result<Growing> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let (temporary, file) = Temporary::file(folder).map_err(Error::io("write", path))?;
        Ok(Growing { path: path.to_path_buf(), temporary, file })
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`]; then what had the name still has it.
    pub fn finish(self) -> Result<()> {
        let Growing { path, temporary, file } = self;
        // Some file systems say only now that they are full.
        file.sync_all().and_then(|()| temporary.rename(&path)).map_err(Error::io("write", &path))
    }
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Growing {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

/// [`Target::new`] and [`Target::write`] in one, for whoever has no work to do between them.
///
/// # Errors
/// Theirs.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    Target::new(path)?.write(bytes)
}

/// The end of a chain of links, there or not; its folder without links.
fn follow(path: &Path) -> std::io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..=MAX_LINKS {
        let name = path.file_name().ok_or(ErrorKind::IsADirectory)?.to_os_string();
        let folder = match path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => return Err(ErrorKind::IsADirectory.into()),
        };
        let folder = folder.canonicalize()?;
        path = folder.join(name);
        if own_descriptor(&path).is_some() {
            return Ok(path);
        }
        let Ok(to) = path.read_link() else { return Ok(path) };
        path = folder.join(to);
        if matches!(path.components().next_back(), Some(Component::ParentDir | Component::CurDir)) {
            return path.canonicalize();
        }
    }
    Err(std::io::Error::from_raw_os_error(libc::ELOOP))
}

/// The number of `/proc/<this process>/fd/<number>`, to which `/dev/stdout` and `/dev/fd` lead.
fn own_descriptor(path: &Path) -> Option<u32> {
    let folder = format!("/proc/{}/fd", std::process::id());
    path.strip_prefix(folder).ok()?.to_str()?.parse().ok()
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// All that can be told of replacing a file without doing it: the name's length, the file's own rights, those of its folder.
fn try_to_replace(path: &Path, found: Option<&Metadata>) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let (_temporary, file) = Temporary::file(folder)?;
    let Some(found) = found else { return Ok(()) };
    // Who protects a file from being written means its content, which a rename would not ask about.
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // In a folder as /tmp only the owner of a file, or of the folder, may replace it.
    let (folder, us) = (folder.metadata()?, file.metadata()?.uid());
    let sticky = folder.mode() & libc::S_ISVTX != 0;
    if sticky && us != 0 && us != found.uid() && us != folder.uid() {
        return Err(ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

/// What will take the place of `path`, beside it, with its rights.
fn temporary(path: &Path, bytes: &[u8]) -> std::io::Result<Temporary> {
    let (temporary, mut file) = Temporary::file(path.parent().unwrap_or(Path::new("/")))?;
    if let Ok(found) = path.symlink_metadata() {
        // Some file systems have none.
        let _ = file.set_permissions(found.permissions());
    }
    file.write_all(bytes)?;
    // Some file systems say only now that they are full.
    file.sync_all()?;
    Ok(temporary)
}

/// Devices and FIFOs were opened without waiting, so that who reads slowly is waited for here.
fn write_through(file: &mut File, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
