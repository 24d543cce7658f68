//! `org/name` from the Hugging Face hub into the cache of the Hugging Face tools: the files that the loader reads, each checked
//! against the hub's size and digest.
//!
//! Reading order: [`Fetch`] here says what is done when; `listing.rs` chooses the files; `transfer.rs` brings one; `store.rs`
//! writes the cache so that half a model is visible to nobody; `http.rs` asks the hub and knows its refusals; `settings.rs`
//! reads the variables of the tools (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, ...).
//!
//! The tools' own client (the crate `hf-hub`) is what the tests compare with: docs/adr/0015 says why it is not what fetches.
//! Left out: several connections at a time, and the hub's chunked storage.

mod http;
mod listing;
mod settings;
mod store;
mod transfer;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use self::http::{Asked, Client};
use self::listing::{Digest, Listing, Wanted, Weights};
use self::settings::{Secret, Settings};
use self::store::Store;
use self::transfer::{Listener, Transfer};
use crate::config::PipelineConfig;
use crate::files::{self, Temporary};
use crate::weights::{Part, hub};
use crate::{Error, Model, ModelFolder, Result};

/// Fetches a model from the Hugging Face hub, or what is missing of it:
///
/// ```no_run
/// # fn main() -> schnell::Result<()> {
/// use std::ops::ControlFlow;
/// use schnell::{Fetch, FetchProgress, Model};
///
/// let folder = Fetch::new("black-forest-labs/FLUX.1-schnell").run_with(&mut |progress| {
///     if let FetchProgress::Bytes { done, total, .. } = progress {
///         eprintln!("{done} of {total}");
///     }
///     ControlFlow::Continue(())
/// })?;
/// let model = Model::open_folder(&folder)?;
/// # Ok(()) }
/// ```
///
/// It is in the tools' cache then, and `ModelFolder::find("black-forest-labs/FLUX.1-schnell")` finds it without a network.
/// Interrupted, by whatever, it goes on where it was; until all is there, nothing of it is seen as a model.
#[derive(Clone, Debug)]
pub struct Fetch {
    id: String,
    revision: String,
    verify: bool,
    weights: bool,
    token: Option<Secret>,
    cache: Option<PathBuf>,
    endpoint: Option<String>,
    patience: Option<[Duration; 2]>,
}

/// What happens meanwhile; whoever is told says whether to go on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum FetchProgress<'a> {
    /// A file that the model needs. All of them come before `Listed`.
    Needs {
        /// Its place in the repository.
        path: &'a str,
        /// Its size.
        bytes: u64,
        /// How much of it is here already.
        here: u64,
    },
    /// All files are known; no weights have been asked for yet.
    Listed {
        /// The commit that they are of.
        commit: &'a str,
        /// Bytes of all.
        bytes: u64,
        /// Bytes that are not here.
        missing: u64,
    },
    /// Bytes of all files that are here; less than before where some had to be thrown away.
    Bytes {
        /// The file that is being fetched, or checked.
        path: &'a str,
        /// Here.
        done: u64,
        /// In all; 0 until all files are known.
        total: u64,
    },
    /// Something to know, as why nothing arrives.
    Note(&'a str),
}

impl Fetch {
    /// Of `org/name`, at `main`.
    pub fn new(id: impl Into<String>) -> Fetch {
        Fetch {
            id: id.into(),
            revision: hub::MAIN.to_string(),
            verify: false,
            weights: true,
            token: None,
            cache: None,
            endpoint: None,
            patience: None,
        }
    }

    /// Another branch, a tag, or a commit. `ModelFolder::find` knows it as `org/name@revision`.
    pub fn revision(mut self, revision: impl Into<String>) -> Fetch {
        self.revision = revision.into();
        self
    }

    /// Checks the digests of files that are here already, too. Those that are damaged are fetched again.
    pub fn verify(mut self) -> Fetch {
        self.verify = true;
        self
    }

    /// Tokenizers, configs and indices alone, some MB: what a file of weights from elsewhere lacks to be a model
    /// (`ModelFolder::find`). Fetching all of it later goes on from there.
    pub fn without_weights(mut self) -> Fetch {
        self.weights = false;
        self
    }

    /// A token for gated models, in place of `HF_TOKEN` and what `hf auth login` has written; an empty one asks without.
    pub fn token(mut self, token: impl Into<String>) -> Fetch {
        self.token = Some(Secret(token.into()));
        self
    }

    /// Another cache than the tools' own (`HF_HUB_CACHE`). `ModelFolder::find` does not look there.
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Fetch {
        self.cache = Some(folder.into());
        self
    }

    /// Another hub.
    #[doc(hidden)]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Fetch {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// How long nothing may arrive, and how long to wait after a first failure.
    #[doc(hidden)]
    pub fn patience(mut self, timeout: Duration, back_off: Duration) -> Fetch {
        self.patience = Some([timeout, back_off]);
        self
    }

    /// Fetches what is missing. With `HF_HUB_OFFLINE`, or where the hub cannot be reached, it succeeds if nothing is.
    ///
    /// # Errors
    /// [`Error::Input`] for a name that is none, a model or revision that is not there, and one that is gated, saying how to
    /// get in; [`Error::Unsupported`] and [`Error::Weights`] for a model that could not be loaded;
    /// [`Error::Network`] when the hub cannot be reached or sends what is wrong, after some patience; [`Error::Io`] for a disk
    /// that is full or may not be written to.
    pub fn run(&self) -> Result<ModelFolder> {
        self.run_with(&mut |_| ControlFlow::Continue(()))
    }

    /// The same, telling `on_progress`, several times a second while something arrives or is waited for.
    ///
    /// # Errors
    /// Those of [`Fetch::run`], and [`Error::Stopped`] when `on_progress` says so; what has arrived stays.
    pub fn run_with(
        &self,
        on_progress: &mut dyn FnMut(FetchProgress<'_>) -> ControlFlow<()>,
    ) -> Result<ModelFolder> {
        hub::check_name(&self.id, &self.revision)?;
        let settings = self.settings()?;
        let mut told = Told { on_progress, path: String::new(), elsewhere: 0, here: 0, total: 0 };
        if settings.is_offline {
            return self.offline(&settings, "HF_HUB_OFFLINE is set", &mut told);
        }
        let client = Client::new(&settings);
        let store = Store::new(&settings.cache, &self.id);
        let asked = Asked { id: &self.id, revision: &self.revision };
        let transfer = Transfer { client: &client, store: &store, asked, back_off: settings.back_off };
        let listing = match transfer.patiently(&self.id, &mut told, || Listing::ask(&client, asked)) {
            Ok(listing) => listing,
            // No network, say. A model that is whole needs none.
            Err(error @ Error::Network { .. }) => {
                return self.offline(&settings, &error.to_string(), &mut told).map_err(|_| error);
            }
            Err(error) => return Err(error),
        };
        self.bring(&transfer, &listing, &mut told)?;
        Ok(ModelFolder::of_hub(store.snapshot(&listing.commit), &self.name()))
    }

    /// Everything that `listing` says the model needs.
    fn bring(&self, transfer: &Transfer, listing: &Listing, told: &mut Told) -> Result<()> {
        let Transfer { client, store, asked, .. } = *transfer;
        let url = |wanted: &Wanted| listing.url(&self.id, &wanted.path);
        let mut all = Vec::new();
        for (path, kind) in listing.small(&self.id)? {
            let wanted =
                transfer.patiently(&path, told, || listing.wanted(client, asked, &path, Some(kind)))?;
            told.begin(&wanted.path);
            self.check_old(store, &wanted, told)?;
            transfer.fetch(&wanted, &url(&wanted), told)?;
            all.push(wanted);
        }
        // Before gigabytes are fetched in vain.
        self.check_config(store, &all)?;
        let weights = if self.weights { self.weights(store, listing, &all)? } else { Vec::new() };
        for path in weights {
            all.push(transfer.patiently(&path, told, || listing.wanted(client, asked, &path, None))?);
        }
        self.announce(store, listing, &all, told)?;
        for wanted in &all {
            told.begin(&wanted.path);
            let here = all.iter().filter(|other| other.path != wanted.path).map(|other| store.arrived(other));
            told.elsewhere = here.sum();
            self.check_old(store, wanted, told)?;
            transfer.fetch(wanted, &url(wanted), told)?;
        }
        // The index comes first of the files, and last of the links.
        all.rotate_left(1);
        store.link(&listing.commit, &all)?;
        store.refer(&self.revision, &listing.commit)
    }

    fn settings(&self) -> Result<Settings> {
        let mut settings = Settings::from_environment()?;
        if let Some(token) = &self.token {
            settings.token = match token.0.is_empty() {
                true => None,
                false => Some(settings::token_of(&token.0)?),
            };
        }
        if let Some(cache) = &self.cache {
            settings.cache.clone_from(cache);
        }
        if let Some(endpoint) = &self.endpoint {
            settings.endpoint = settings::endpoint(endpoint)?;
        }
        if let Some([timeout, back_off]) = self.patience {
            (settings.timeout, settings.back_off) = (timeout, back_off);
        }
        Ok(settings)
    }

    /// As `ModelFolder::find` takes it.
    fn name(&self) -> String {
        match self.revision.as_str() {
            hub::MAIN => self.id.clone(),
            revision => format!("{}@{revision}", self.id),
        }
    }

    /// What the cache has, if it is whole: every file's header says how long it is.
    fn offline(&self, settings: &Settings, why: &str, told: &mut Told) -> Result<ModelFolder> {
        let found = hub::snapshot_in(&settings.cache, &self.name()).map_err(|error| match error {
            Error::Input(text) => Error::Input(format!("{why}, and {text}")),
            other => other,
        });
        let folder = ModelFolder::of_hub(found?, &self.name());
        match self.weights {
            true => Model::open_folder(&folder).map(drop)?,
            false => Model::check_tokenizers(&folder)?,
        }
        if self.verify {
            self.verify_links(settings, &folder, told)?;
        }
        told.note(&format!("{why}: nothing was asked; {} is whole in the cache", self.name()))?;
        Ok(folder)
    }

    /// Compares what a snapshot's links lead to with their names, which are digests.
    fn verify_links(&self, settings: &Settings, folder: &ModelFolder, told: &mut Told) -> Result<()> {
        let store = Store::new(&settings.cache, &self.id);
        let folders = Part::ALL.map(crate::weights::layouts::diffusers::folder);
        let folders = folders.into_iter().chain(["", "scheduler", "tokenizer", "tokenizer_2"]);
        for dir in folders.map(|name| folder.path().join(name)) {
            for entry in std::fs::read_dir(&dir).map_err(Error::io("read", &dir))? {
                let path = entry.map_err(Error::io("read", &dir))?.path();
                let target = path.read_link().ok();
                let name = target.as_ref().and_then(|target| target.file_name()?.to_str());
                let Some(digest) = name.and_then(Digest::new) else { continue };
                let bytes = path.metadata().map_err(Error::io("read", &path))?.len();
                let wanted = Wanted { path: path.to_string_lossy().into_owned(), bytes, digest };
                told.begin(&wanted.path);
                if !transfer::is_intact(&store, &wanted, told)? {
                    let what =
                        format!("damaged; with a network `schnell fetch --verify {}` mends it", self.id);
                    return Err(Error::weights(path, what));
                }
            }
        }
        Ok(())
    }

    /// A blob that is here, if asked to: what is damaged goes.
    fn check_old(&self, store: &Store, wanted: &Wanted, told: &mut Told) -> Result<()> {
        if self.verify && store.has(wanted) && !transfer::is_intact(store, wanted, told)? {
            told.note(&format!("{}: damaged; fetching it again", wanted.path))?;
            let path = store.blob(&wanted.digest);
            std::fs::remove_file(&path).map_err(store::disk("remove", &path))?;
        }
        Ok(())
    }

    /// Whether the loader would take a model with these config files.
    fn check_config(&self, store: &Store, small: &[Wanted]) -> Result<()> {
        let folder = Temporary::folder(|folder| {
            for wanted in small {
                let (link, blob) = (folder.join(&wanted.path), store.blob(&wanted.digest));
                let blob = std::path::absolute(&blob).map_err(Error::io("find", &blob))?;
                let made = std::fs::create_dir_all(link.parent().unwrap_or(folder));
                made.and_then(|()| std::os::unix::fs::symlink(blob, &link))
                    .map_err(Error::io("create", &link))?;
            }
            Ok(())
        })?;
        // Nobody knows that folder.
        let named = |text: &str| text.replace(&folder.path().display().to_string(), &self.id);
        match PipelineConfig::open(folder.path()) {
            Ok(_) => Ok(()),
            Err(Error::Unsupported(what)) => Err(Error::Unsupported(named(&what))),
            Err(Error::Weights { path, what, source }) => Err(Error::Weights {
                path: named(&path.to_string_lossy()).into(),
                what: named(&what),
                source,
            }),
            Err(other) => Err(other),
        }
    }

    /// Places of all weight files, the indices having been fetched.
    fn weights(&self, store: &Store, listing: &Listing, small: &[Wanted]) -> Result<Vec<String>> {
        let mut paths = Vec::new();
        for part in Part::ALL {
            match listing.weights(&self.id, part)? {
                Weights::Single(path) => paths.push(path),
                Weights::Index(path) => {
                    let index = small.iter().find(|wanted| wanted.path == path);
                    let index = index.ok_or_else(|| Error::Internal(format!("{path} was not fetched")))?;
                    let bytes = files::read(&store.blob(&index.digest), files::Kind::Index)?;
                    paths.extend(listing.shards(&self.id, &path, &bytes)?);
                }
            }
        }
        Ok(paths)
    }

    /// Says what there is to do, and refuses what the disk has no room for.
    fn announce(&self, store: &Store, listing: &Listing, all: &[Wanted], told: &mut Told) -> Result<()> {
        let (mut bytes, mut missing) = (0, 0);
        for wanted in all {
            let here = store.arrived(wanted);
            // No sum of so few, each bounded, overflows.
            (bytes, missing) = (bytes + wanted.bytes, missing + wanted.bytes - here);
            told.tell(FetchProgress::Needs { path: &wanted.path, bytes: wanted.bytes, here })?;
        }
        told.total = bytes;
        told.tell(FetchProgress::Listed { commit: &listing.commit, bytes, missing })?;
        match store.free_bytes() {
            Some(free) if free < missing => Err(store.too_full(missing, free)),
            _ => Ok(()),
        }
    }
}

/// Who is told, and what of.
struct Told<'a> {
    on_progress: &'a mut dyn FnMut(FetchProgress<'_>) -> ControlFlow<()>,
    path: String,
    /// Bytes that are here of other files.
    elsewhere: u64,
    /// Bytes of this one.
    here: u64,
    /// Of all; 0 until that is known.
    total: u64,
}

impl Told<'_> {
    fn begin(&mut self, path: &str) {
        self.here = 0;
        path.clone_into(&mut self.path);
    }

    fn tell(&mut self, progress: FetchProgress<'_>) -> Result<()> {
        match (self.on_progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }
}

impl Listener for Told<'_> {
    fn arrived(&mut self, bytes: u64) -> Result<()> {
        self.here = bytes;
        self.idle()
    }

    fn idle(&mut self) -> Result<()> {
        let path = std::mem::take(&mut self.path);
        let told = self.tell(FetchProgress::Bytes {
            path: &path,
            done: self.elsewhere + self.here,
            total: self.total,
        });
        self.path = path;
        told
    }

    fn note(&mut self, text: &str) -> Result<()> {
        self.tell(FetchProgress::Note(text))
    }
}
