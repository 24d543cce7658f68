//! `schnell fetch` and `Fetch`, from a hub of the tests' own that misbehaves. What it does to processes is in
//! `tests/fetch_process.rs`.

#[path = "common/hub.rs"]
mod hub;
#[path = "common/tiny.rs"]
mod tiny;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hub::{COMMIT, Fault, Hub, ID};
use schnell::{Error, Fetch, FetchProgress, Model, ModelFolder, Result};
use serde_json::json;
use tiny::{LARGEST, check_cache, check_whole, files, hub};

/// A hub, a cache, and a `Fetch` that is less patient than users are.
struct Room {
    hub: Hub,
    cache: tempfile::TempDir,
}

impl Room {
    fn new() -> Room {
        Room { hub: hub(), cache: tempfile::tempdir().unwrap() }
    }

    fn fetch(&self) -> Fetch {
        // Whoever runs the tests may have a token.
        let fetch = Fetch::new(ID).endpoint(&self.hub.endpoint).cache(self.cache.path()).token("");
        fetch.patience(Duration::from_millis(500), Duration::from_millis(5))
    }

    /// All is there, checked byte by byte.
    #[track_caller]
    fn succeeds(&self) -> PathBuf {
        let folder = self.fetch().run().unwrap();
        check_whole(self.cache.path(), folder.path());
        folder.path().to_path_buf()
    }

    /// An error that says all of `words`; what is in the cache is sound, and no model.
    #[track_caller]
    fn fails(&self, words: &[&str]) -> Error {
        self.refuses(self.fetch(), words)
    }

    #[track_caller]
    fn refuses(&self, fetch: Fetch, words: &[&str]) -> Error {
        let Err(error) = fetch.run() else { panic!("fetched, instead of saying {words:?}") };
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "`{word}` is not in `{text}`");
        }
        assert!(!text.contains("secret"), "{text}");
        check_cache(self.cache.path());
        assert!(!self.path("refs/main").exists(), "refs/main");
        error
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cache.path().join("models--org--tiny").join(name)
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.path("blobs").join(hub::digest(name, &files()[name]))
    }

    fn partial(&self, name: &str) -> PathBuf {
        let mut path = self.blob(name).into_os_string();
        path.push(".incomplete");
        path.into()
    }
}

// ---- what is fetched ---------------------------------------------------------------------------------------

#[test]
fn the_files_that_the_loader_reads_are_fetched_and_no_others() {
    let room = Room::new();
    let folder = room.succeeds();
    assert_eq!(folder, room.path("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(room.path("refs/main")).unwrap(), COMMIT);
    let link = folder.join(LARGEST).read_link().unwrap();
    assert!(link.starts_with("../../../blobs"), "{}", link.display());
    let asked = room.hub.asked();
    for never in tiny::NEVER {
        assert!(!asked.iter().any(|asked| asked.path.ends_with(never)), "{never} was asked for");
    }
    assert!(Model::open(&folder).unwrap().warnings().is_empty());
    // A second time, nothing but the list.
    room.hub.forget();
    room.succeeds();
    assert_eq!(room.hub.asked().len(), 1);
}

#[test]
fn progress_adds_up() {
    let room = Room::new();
    let (mut needs, mut listed, mut last) = (0, 0, 0);
    let run = room.fetch().run_with(&mut |progress| {
        match progress {
            FetchProgress::Needs { bytes, .. } => needs += bytes,
            FetchProgress::Listed { bytes, missing, commit } => {
                assert!(missing < bytes && commit == COMMIT);
                listed = bytes;
            }
            FetchProgress::Bytes { done, total, .. } if total > 0 => {
                assert!(done >= last && done <= total && total == listed);
                last = done;
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    run.unwrap();
    assert!(needs == listed && last == listed && listed > 0, "{needs} {listed} {last}");
}

#[test]
fn revisions_have_names_of_their_own() {
    let room = Room::new();
    for (revision, reference) in
        [("v2", Some("refs/v2")), ("refs/pr/1", Some("refs/refs/pr/1")), (COMMIT, None)]
    {
        let folder = room.fetch().revision(revision).run().unwrap();
        check_whole(room.cache.path(), folder.path());
        if let Some(reference) = reference {
            assert_eq!(std::fs::read_to_string(room.path(reference)).unwrap(), COMMIT);
        }
    }
    assert!(!room.path("refs/main").exists() && !room.path("refs").join(COMMIT).exists());
    room.refuses(room.fetch().revision("v3"), &["no revision v3", "branch, tag or commit"]);
    room.refuses(room.fetch().revision("../../x"), &["../../x is no revision"]);
}

/// Some mirrors list names alone.
#[test]
fn what_the_list_leaves_out_is_asked_for_file_by_file() {
    let room = Room::new();
    room.hub.state.is_terse.store(true, std::sync::atomic::Ordering::Relaxed);
    room.succeeds();
    assert!(room.hub.asked().iter().any(|asked| asked.method == "HEAD"));
}

/// Whose cache it is, and whether the tests' hub is like the real one, the tools' own client says.
#[test]
fn the_tools_client_and_ours_understand_each_other() {
    let theirs = Room::new();
    let builder =
        hf_hub::api::sync::ApiBuilder::from_cache(hf_hub::Cache::new(theirs.cache.path().to_path_buf()));
    let api = builder
        .with_endpoint(theirs.hub.endpoint.clone())
        .with_progress(false)
        .with_token(None)
        .build()
        .unwrap();
    let repo = api.model(ID.to_string());
    let listed: Vec<String> = repo.info().unwrap().siblings.into_iter().map(|file| file.rfilename).collect();
    for name in files().keys() {
        assert!(listed.contains(name), "{name} is not in {listed:?}");
        if !tiny::NEVER.contains(&name.as_str()) {
            repo.get(name).unwrap();
        }
    }
    theirs.hub.forget();
    theirs.succeeds();
    let again: Vec<String> = theirs.hub.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(again.len(), 1, "asked for again: {again:?}");

    let ours = Room::new();
    ours.succeeds();
    let cache = hf_hub::Cache::new(ours.cache.path().to_path_buf()).model(ID.to_string());
    for (name, bytes) in files() {
        let found = cache.get(name).map(|path| std::fs::read(path).unwrap());
        assert!(tiny::NEVER.contains(&name.as_str()) != (found.as_ref() == Some(bytes)), "{name}");
    }
}

// ---- interruptions -----------------------------------------------------------------------------------------

#[test]
fn what_was_interrupted_goes_on_where_it_was() {
    let most = files()[LARGEST].len();
    for fault in [Fault::Truncate(100_000), Fault::Stall(100_000), Fault::Reset(200_000)] {
        let room = Room::new();
        room.hub.faults(LARGEST, [fault.clone()]);
        room.succeeds();
        let ranges = room.hub.ranges(LARGEST);
        assert!(ranges.len() == 2 && ranges[0] == 0, "{fault:?}: {ranges:?}");
        // A reset may cost what was on its way.
        let is_reset = matches!(fault, Fault::Reset(_));
        assert!(ranges[1] == 100_000 || is_reset && ranges[1] < most as u64, "{fault:?}: {ranges:?}");
    }
}

#[test]
fn what_another_run_has_left_is_gone_on_with() {
    let room = Room::new();
    room.hub.faults(LARGEST, [Fault::Truncate(100_000)]);
    room.hub.always(LARGEST, Fault::Status(500, vec![]));
    let error = room.fails(&["(500)", "schnell fetch org/tiny"]);
    assert!(matches!(error, Error::Network(_)), "{error}");
    let len = std::fs::metadata(room.partial(LARGEST)).unwrap().len();
    assert_eq!(len, 100_000);
    let calm = Room { hub: hub(), cache: room.cache };
    let mut first = None;
    let run = calm.fetch().run_with(&mut |progress| {
        if let FetchProgress::Bytes { done, total: 1.., .. } = progress {
            first.get_or_insert(done);
        }
        ControlFlow::Continue(())
    });
    check_whole(calm.cache.path(), run.unwrap().path());
    assert_eq!(calm.hub.ranges(LARGEST), [len]);
    assert!(first > Some(len), "what is here is not counted: {first:?}");
}

#[test]
fn a_server_without_parts_is_put_up_with() {
    let room = Room::new();
    room.hub.faults(LARGEST, [Fault::Truncate(100_000), Fault::IgnoreRange]);
    room.succeeds();
    assert_eq!(room.hub.ranges(LARGEST), [0, 100_000], "its answer was not used");
}

#[test]
fn failures_that_pass_are_waited_for() {
    let room = Room::new();
    let after = |seconds: &str| Fault::Status(429, vec![("Retry-After", seconds.to_string())]);
    room.hub.faults("/revision/main", [Fault::Status(500, vec![]), Fault::Close]);
    room.hub.faults(
        "transformer/config.json",
        [Fault::Status(503, vec![]), Fault::Close, Fault::Status(502, vec![])],
    );
    room.hub.faults(LARGEST, [after("1"), Fault::Status(500, vec![])]);
    let start = Instant::now();
    room.succeeds();
    assert!(start.elapsed() >= Duration::from_secs(1), "Retry-After was not honored");
}

#[test]
fn patience_ends() {
    let room = Room::new();
    room.hub.always(LARGEST, Fault::Status(500, vec![]));
    room.fails(&["(500)", "what has arrived is kept"]);
    assert_eq!(room.hub.ranges(LARGEST).len(), 5);
    let room = Room::new();
    room.hub.always(LARGEST, Fault::Stall(10));
    room.fails(&["nothing came from", "for 0.5 s"]);
    let room = Room::new();
    room.hub.always("/revision/main", Fault::Status(429, vec![("Retry-After", "4000".to_string())]));
    room.fails(&["too many requests (429)", "wait 4000 s"]);
    assert_eq!(room.hub.asked().len(), 1);
}

#[test]
fn whoever_is_told_of_progress_may_stop_it() {
    let room = Room::new();
    let stopped = room.fetch().run_with(&mut |progress| match progress {
        FetchProgress::Bytes { done, total, .. } if total > 0 && done > total / 2 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(Error::Stopped)));
    check_cache(room.cache.path());
    room.succeeds();
    // While waiting, too.
    let room = Room::new();
    room.hub.always(LARGEST, Fault::Status(429, vec![("Retry-After", "60".to_string())]));
    let start = Instant::now();
    let stopped = room.fetch().run_with(&mut |_| match start.elapsed() > Duration::from_secs(1) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(Error::Stopped)) && start.elapsed() < Duration::from_secs(10));
}

// ---- wrong bytes -------------------------------------------------------------------------------------------

#[test]
fn wrong_bytes_are_thrown_away_and_fetched_once_more() {
    for name in [LARGEST, "transformer/config.json"] {
        let room = Room::new();
        room.hub.faults(name, [Fault::Garbage]);
        room.succeeds();
        assert_eq!(room.hub.ranges(name), [0, 0]);
        let room = Room::new();
        room.hub.always(name, Fault::Garbage);
        let error = room.fails(&[name, "another digest", "thrown away"]);
        assert!(matches!(error, Error::Network(_)));
        assert!(!room.blob(name).exists() && !room.partial(name).exists());
    }
}

#[test]
fn a_beginning_that_is_damaged_is_thrown_away() {
    for left in [vec![0; 100_000], vec![0; files()[LARGEST].len()], vec![0; files()[LARGEST].len() + 1]] {
        let room = Room::new();
        std::fs::create_dir_all(room.path("blobs")).unwrap();
        std::fs::write(room.partial(LARGEST), left).unwrap();
        room.succeeds();
    }
    // A link there is not followed.
    let room = Room::new();
    let elsewhere = room.cache.path().join("elsewhere");
    std::fs::write(&elsewhere, "mine").unwrap();
    std::fs::create_dir_all(room.path("blobs")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, room.partial(LARGEST)).unwrap();
    room.succeeds();
    assert_eq!(std::fs::read(&elsewhere).unwrap(), b"mine");
}

#[test]
fn wrong_sizes_are_noticed() {
    for (fault, words) in [(Fault::Longer(10), "goes on after"), (Fault::Shorter(10), "but the hub lists")] {
        let room = Room::new();
        room.hub.faults(LARGEST, [fault.clone()]);
        room.succeeds();
        let room = Room::new();
        room.hub.always(LARGEST, fault);
        room.fails(&[words]);
    }
    // It cannot be told beforehand: it always ends too soon.
    let room = Room::new();
    room.hub.faults(LARGEST, [Fault::Ends(10)]);
    room.succeeds();
    assert_eq!(room.hub.ranges(LARGEST).len(), 2);
    let room = Room::new();
    room.hub.always(LARGEST, Fault::Ends(10));
    room.fails(&[LARGEST, "it ended after", "bytes"]);
    // A blob of the wrong size, as of a disk that was full, is none.
    let room = Room::new();
    std::fs::create_dir_all(room.path("blobs")).unwrap();
    std::fs::write(room.blob(LARGEST), "half").unwrap();
    room.succeeds();
}

#[test]
fn damage_is_found_where_it_is_looked_for() {
    let room = Room::new();
    room.succeeds();
    let mut bytes = files()[LARGEST].clone();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(room.blob(LARGEST), bytes).unwrap();
    room.fetch().run().unwrap();
    room.hub.always("/revision/main", Fault::Status(500, vec![]));
    let damaged = room.fetch().verify().run();
    assert!(damaged.is_err_and(|error| error.to_string().contains("(500)")));
    let calm = Room { hub: hub(), cache: room.cache };
    let folder = calm.fetch().verify().run().unwrap();
    check_whole(calm.cache.path(), folder.path());
}

// ---- refusals ----------------------------------------------------------------------------------------------

#[test]
fn who_may_not_is_told_how() {
    let room = Room::new();
    *room.hub.state.token.lock().unwrap() = Some("hf_right".to_string());
    let terms = format!("{}/{ID}", room.hub.endpoint);
    let error = room.fails(&[
        "gated or private (401)",
        "accept its license at",
        &terms,
        "settings/tokens",
        "HF_TOKEN",
    ]);
    assert!(matches!(error, Error::Input(_)));
    let error =
        room.refuses(room.fetch().token("hf_other"), &["may not read", "(403)", &terms, "fine-grained"]);
    assert!(matches!(error, Error::Input(_)) && !error.to_string().contains("hf_other"));
    room.refuses(room.fetch().token("a b"), &["the token for the hub"]);
    room.hub.forget();
    let folder = room.fetch().token("hf_right").run().unwrap();
    check_whole(room.cache.path(), folder.path());
    for asked in room.hub.asked() {
        assert_eq!(asked.token.is_none(), asked.is_cdn, "{asked:?}");
    }
    let room = Room::new();
    room.hub.always("/revision/main", Fault::Status(401, vec![]));
    room.refuses(room.fetch().token("hf_old"), &["not accepted", "(401)", "expired"]);
}

#[test]
fn what_is_not_there_is_named() {
    let room = Room::new();
    let code = |code: &str| vec![("X-Error-Code", code.to_string())];
    room.hub.always("/revision/main", Fault::Status(404, code("RepoNotFound")));
    room.fails(&["no model org/tiny", "(404)", "spelling"]);
    room.hub.always("/revision/main", Fault::Status(401, code("RepoNotFound")));
    room.fails(&["no model org/tiny, or it is private", "HF_TOKEN"]);
    room.hub.always("/revision/main", Fault::Status(418, vec![]));
    room.fails(&["answers 418"]);
    for name in ["tiny", "a/b/c", "../tiny", "org/..", "org/ti ny"] {
        let error = Fetch::new(name).endpoint(&room.hub.endpoint).cache(room.cache.path()).run().unwrap_err();
        assert!(
            matches!(&error, Error::Input(text) if text.contains("organization/name")),
            "{name}: {error}"
        );
    }
    let room = Room::new();
    room.hub.always(LARGEST, Fault::Status(404, code("EntryNotFound")));
    // From the server for large files it may be a link that has expired.
    room.fails(&["where the hub redirects to, answers 404"]);
}

#[test]
fn networks_that_are_none_are_named() {
    let room = Room::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let start = Instant::now();
    let at = |endpoint: &str| room.fetch().endpoint(endpoint);
    room.refuses(
        at(&format!("http://{closed}")),
        &["the connection to", "failed", "is there a network", "HTTPS_PROXY"],
    );
    // A name that no server needs to be asked for.
    let impossible = "a".repeat(64);
    let error = room.refuses(at(&format!("http://{impossible}")), &[&impossible, "cannot be found"]);
    assert!(matches!(error, Error::Network(_)));
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    std::thread::spawn(move || plain.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    room.refuses(at(&format!("https://{address}")), &["no secure connection", "clock"]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    room.refuses(at("ftp://127.0.0.1"), &["HF_ENDPOINT"]);
}

#[test]
fn redirects_end() {
    let room = Room::new();
    let circle = format!("{}/circle/{LARGEST}", room.hub.endpoint);
    room.hub.always("config.json", Fault::Redirect(circle.replace(LARGEST, "config.json")));
    room.fails(&["more than 20 redirects"]);
    for nowhere in ["file:///etc/passwd", "", "https://"] {
        let room = Room::new();
        room.hub.always("config.json", Fault::Redirect(nowhere.to_string()));
        room.fails(&["redirects to nowhere"]);
    }
    // On the hub itself they may be relative.
    let room = Room::new();
    let to = format!("/{ID}/resolve/main/vae/config.json");
    room.hub.faults("vae/config.json", [Fault::Redirect(to)]);
    room.succeeds();
}

#[test]
fn models_that_cannot_be_used_are_refused_before_gigabytes() {
    let without = |path: &str, words: &[&str]| {
        let room = Room::new();
        room.hub.state.files.lock().unwrap().remove(path);
        room.fails(words);
        assert!(room.hub.ranges(LARGEST).is_empty());
    };
    without("model_index.json", &["org/tiny has no model_index.json", "diffusers layout"]);
    without("vae/config.json", &["org/tiny/vae/config.json", "not there"]);
    without("tokenizer/tokenizer.json", &["org/tiny/tokenizer/vocab.json", "not there"]);
    without("text_encoder/model.safetensors", &["org/tiny/text_encoder", "no safetensors files"]);
    without(LARGEST, &["index.json: names shard", "which the repository does not hold"]);
    let with = |path: &str, content: &str, words: &[&str]| {
        let room = Room::new();
        room.hub.state.files.lock().unwrap().insert(path.to_string(), content.into());
        room.fails(words);
        assert!(room.hub.ranges(LARGEST).is_empty());
    };
    with(
        "model_index.json",
        r#"{"_class_name": "WanPipeline"}"#,
        &["org/tiny/model_index.json: pipeline class WanPipeline"],
    );
    with("vae/config.json", "{", &["org/tiny/vae/config.json: malformed JSON"]);
}

#[test]
fn servers_are_not_believed() {
    let evil = |more: serde_json::Value, words: &[&str]| {
        let room = Room::new();
        room.hub.state.more.lock().unwrap().push(more);
        room.fails(words);
    };
    let config = "vae/config.json";
    let sized = |size: u64, digest: &str| json!({"rfilename": config, "size": size, "blobId": digest});
    evil(sized(5 << 30, &"0".repeat(40)), &["vae/config.json: 5368709120 bytes; expected at most"]);
    let weights = |size: u64| json!({"rfilename": LARGEST, "size": size, "lfs": {"sha256": "0".repeat(64), "size": size}});
    evil(weights(u64::MAX), &[LARGEST, "bytes; expected at most"]);
    let error = Room::new();
    error.hub.state.more.lock().unwrap().push(weights(1 << 40));
    let error = error.fails(&["bytes are to be fetched, but", "are free; make room, or set HF_HUB_CACHE"]);
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
    // Names that nothing asks for do no harm; an index that asks for them is refused.
    let room = Room::new();
    let names = [
        "../../evil",
        "/etc/evil",
        "transformer/../../evil.safetensors",
        "vae/config.json/../../x",
        "a\u{0}b",
    ];
    room.hub
        .state
        .more
        .lock()
        .unwrap()
        .extend(names.map(|name| json!({"rfilename": name, "size": 1, "blobId": "x"})));
    room.succeeds();
    assert!(!room.hub.asked().iter().any(|asked| asked.path.contains("evil")));
    let index = json!({"weight_map": {"a": "../../evil.safetensors"}}).to_string();
    room.hub.state.files.lock().unwrap().insert(tiny::INDEX.to_string(), index.into());
    let refused = room.fetch().run().unwrap_err().to_string();
    assert!(refused.contains("names shard \"../../evil.safetensors\""), "{refused}");
    let listing = |body: &str, words: &[&str]| {
        let room = Room::new();
        room.hub.always("/revision/main", Fault::Body(body.as_bytes().to_vec()));
        room.fails(words);
    };
    listing("<html>log in</html>", &["not what a hub sends"]);
    listing(r#"{"sha": "../../../etc", "siblings": []}"#, &["which is none"]);
    listing(
        &format!(r#"{{"sha": "{COMMIT}", "siblings": [], "x": "{}"}}"#, "a".repeat(17 << 20)),
        &["has more than 16777216 bytes"],
    );
    listing(&"[".repeat(1 << 20), &["not what a hub sends"]);
}

// ---- without a network -------------------------------------------------------------------------------------

#[test]
fn a_whole_model_needs_no_hub() {
    let room = Room::new();
    room.succeeds();
    let mut notes = String::new();
    let offline = |notes: &mut String| -> Result<ModelFolder> {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        room.fetch().verify().endpoint(format!("http://{closed}")).run_with(&mut |progress| {
            if let FetchProgress::Note(text) = progress {
                *notes += text;
            }
            ControlFlow::Continue(())
        })
    };
    let folder = offline(&mut notes).unwrap();
    check_whole(room.cache.path(), folder.path());
    assert!(notes.contains("is whole in the cache") && notes.contains("is there a network"), "{notes}");
    // Not whole: a blob is gone, is damaged, or there is no such revision.
    let blob = room.blob(LARGEST);
    let mut bytes = std::fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    assert!(matches!(offline(&mut notes), Err(Error::Network(_))));
    std::fs::remove_file(&blob).unwrap();
    assert!(matches!(offline(&mut notes), Err(Error::Network(_))));
}

/// Another tool was interrupted: its revision and some links are there.
#[test]
fn half_a_model_of_another_tool_is_completed() {
    let room = Room::new();
    let folder = room.succeeds();
    for gone in [LARGEST, "tokenizer/tokenizer.json", "vae/config.json"] {
        std::fs::remove_file(room.blob(gone)).unwrap();
        std::fs::remove_file(folder.join(gone)).unwrap();
    }
    assert!(Model::open(&folder).is_err());
    room.succeeds();
    // A link elsewhere is put right.
    std::fs::remove_file(folder.join(LARGEST)).unwrap();
    std::os::unix::fs::symlink(Path::new("../../../blobs/gone"), folder.join(LARGEST)).unwrap();
    room.succeeds();
}
