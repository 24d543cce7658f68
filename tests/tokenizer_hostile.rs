//! Tokenizer files that were made by mistake or in bad faith, and those beside the vocabulary that say more than it:
//! what is no tokenizer of CLIP's or T5's kind is refused by name, and nothing takes the process down.

use std::fs;
use std::path::{Path, PathBuf};

use schnell::Error;
use schnell::text::tokenizer::{ClipTokenizer, T5Tokenizer};
use serde_json::{Value, json};

const CLIP_JSON: &str = "b/pipeline/tokenizer/tokenizer.json";
const T5_JSON: &str = "a/pipeline/tokenizer_2/tokenizer.json";
const SPIECE: &str = "b/pipeline/tokenizer_2/spiece.model";

fn read(path: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)).unwrap()
}

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// A folder with `tokenizer.json`, changed.
fn changed(golden: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let mut json = serde_json::from_slice(&read(golden)).unwrap();
    change(&mut json);
    folder(&[("tokenizer.json", json.to_string().into_bytes())])
}

fn clip_files() -> Vec<(&'static str, Vec<u8>)> {
    ["vocab.json", "merges.txt"].map(|name| (name, read(&format!("a/pipeline/tokenizer/{name}")))).into()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: schnell::Result<T>, words: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Weights { .. }), "{error}");
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    assert!(text.len() < 600, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not name {word:?}");
    }
}

fn clip_ids(dir: &Path, text: &str) -> Vec<u32> {
    let tokens = ClipTokenizer::open(dir).unwrap().encode(text, 77).unwrap();
    tokens.ids[..tokens.len].to_vec()
}

fn t5_ids(dir: &Path, text: &str) -> Vec<u32> {
    let tokens = T5Tokenizer::open(dir).unwrap().encode(text, 77).unwrap();
    tokens.ids[..tokens.len].to_vec()
}

// ---- other kinds of tokenizers ---------------------------------------------------------------------------

/// Of a `tokenizer.json`.
type Change = fn(&mut Value);

#[test]
fn only_clips_own_model_is_taken() {
    for (field, value) in [
        ("dropout", json!(0.5)),
        ("continuing_subword_prefix", json!("####################")),
        ("end_of_word_suffix", json!("")),
        ("end_of_word_suffix", json!("@@")),
        ("fuse_unk", json!(true)),
        ("byte_fallback", json!(true)),
        ("ignore_merges", json!(true)),
        ("unk_token", json!("nowhere")),
        ("something_new", json!(1)),
    ] {
        let dir = changed(CLIP_JSON, |json| json["model"][field] = value);
        refused(ClipTokenizer::open(dir.path()), &["tokenizer.json", field]);
    }
    for kind in ["WordPiece", "WordLevel", "Unigram"] {
        let dir = changed(CLIP_JSON, |json| json["model"]["type"] = json!(kind));
        refused(ClipTokenizer::open(dir.path()), &["tokenizer.json", kind, "BPE"]);
    }
}

#[test]
fn only_clips_own_steps_are_taken() {
    let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let nothing = json!({"type": "Replace", "pattern": {"String": ""}, "content": ""});
    for normalizer in [
        json!({"type": "Sequence", "normalizers": vec![replace.clone(); 40]}),
        json!({"type": "Sequence", "normalizers": [nothing]}),
        json!({"type": "Prepend", "prepend": "x"}),
        replace,
        Value::Null,
    ] {
        let dir = changed(CLIP_JSON, |json| json["normalizer"] = normalizer);
        refused(ClipTokenizer::open(dir.path()), &["tokenizer.json", "normalizer"]);
    }
    let others: [fn(&mut Value); 4] = [
        |json| json["pre_tokenizer"] = Value::Null,
        |json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(a|b|ab)*c"),
        |json| json["pre_tokenizer"]["pretokenizers"][0]["invert"] = json!(false),
        |json| json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true),
    ];
    for other in others {
        refused(ClipTokenizer::open(changed(CLIP_JSON, other).path()), &["tokenizer.json", "pre_tokenizer"]);
    }
    let dir = changed(CLIP_JSON, |json| json["post_processor"]["type"] = json!("ByteLevel"));
    refused(ClipTokenizer::open(dir.path()), &["tokenizer.json", "post_processor"]);
}

/// Older files have merges as lines, name no type and split by the shorter expression.
#[test]
fn older_forms_of_the_same_tokenizer_give_the_same_ids() {
    let text = "An old LIGHTHOUSE, it's 3.14";
    let plain = changed(CLIP_JSON, |_| {});
    let old = changed(CLIP_JSON, |json| {
        json["model"].as_object_mut().unwrap().remove("type");
        for merge in json["model"]["merges"].as_array_mut().unwrap() {
            *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
        }
        let pattern = &mut json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
        *pattern = json!(pattern.as_str().unwrap().replace(r"<\|startoftext\|>|<\|endoftext\|>|", ""));
    });
    assert_eq!(clip_ids(old.path(), text), clip_ids(plain.path(), text));
    let always = changed(T5_JSON, |json| json["pre_tokenizer"]["prepend_scheme"] = json!("always"));
    let old = changed(T5_JSON, |json| {
        json["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "add_prefix_space": true});
    });
    assert_eq!(t5_ids(old.path(), "a</s>b"), t5_ids(always.path(), "a</s>b"));
}

#[test]
fn only_t5s_own_model_and_steps_are_taken() {
    let others: [(&str, Change); 6] = [
        ("byte_fallback", |json| json["model"]["byte_fallback"] = json!(true)),
        ("normalizer", |json| json["normalizer"]["normalizers"][1]["strip_left"] = json!(true)),
        ("normalizer", |json| json["normalizer"]["normalizers"][2]["pattern"] = json!({"String": ""})),
        ("pre_tokenizer", |json| json["pre_tokenizer"]["replacement"] = json!("_")),
        ("pre_tokenizer", |json| json["pre_tokenizer"] = json!({"type": "Whitespace"})),
        ("unk_id", |json| json["model"]["unk_id"] = json!(1_u64 << 40)),
    ];
    for (word, other) in others {
        let error = T5Tokenizer::open(changed(T5_JSON, other).path());
        // The crate's own words for the last.
        refused(error, &["tokenizer.json", if word == "unk_id" { "unk" } else { word }]);
    }
    let dir = changed(T5_JSON, |json| json["model"]["vocab"][300][1] = json!(1e300));
    refused(T5Tokenizer::open(dir.path()), &["tokenizer.json", "score"]);
}

// ---- bounds ----------------------------------------------------------------------------------------------

#[test]
fn long_pieces_are_refused_in_every_layout() {
    let long = "a".repeat(2_000_000);
    let dir = changed(T5_JSON, |json| json["model"]["vocab"][300][0] = json!(long));
    refused(T5Tokenizer::open(dir.path()), &["tokenizer.json", "2000000 bytes"]);
    let dir = changed(CLIP_JSON, |json| json["model"]["vocab"][&long] = json!(5000));
    refused(ClipTokenizer::open(dir.path()), &["tokenizer.json", "2000000 bytes"]);
    // SentencePiece { piece: long }: both lengths as varints.
    let varint = |mut n: usize| {
        let mut bytes = Vec::new();
        while n >= 128 {
            bytes.push((n % 128) as u8 | 128);
            n /= 128;
        }
        bytes.push(n as u8);
        bytes
    };
    let piece = [vec![0x0a], varint(long.len()), long.clone().into_bytes()].concat();
    let spiece = [read(SPIECE), vec![0x0a], varint(piece.len()), piece].concat();
    refused(
        T5Tokenizer::open(folder(&[("spiece.model", spiece)]).path()),
        &["spiece.model", "2000000 bytes"],
    );
    for golden in [CLIP_JSON, T5_JSON] {
        let dir = changed(golden, |json| {
            json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 5000, "content": long}));
        });
        let error = if golden == CLIP_JSON {
            ClipTokenizer::open(dir.path()).map(|_| ())
        } else {
            T5Tokenizer::open(dir.path()).map(|_| ())
        };
        refused(error, &["tokenizer.json", "2000000 bytes"]);
    }
}

#[test]
fn a_prompt_of_more_than_a_megabyte_is_an_input_error() {
    let clip = ClipTokenizer::open(changed(CLIP_JSON, |_| {}).path()).unwrap();
    let t5 = T5Tokenizer::open(changed(T5_JSON, |_| {}).path()).unwrap();
    let text = "x".repeat((1 << 20) + 1);
    for result in [clip.encode(&text, 77), t5.encode(&text, 77)] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Input(_)), "{error}");
        assert!(error.to_string().contains("1048577 bytes"), "{error}");
    }
}

#[test]
fn files_that_never_end_are_refused_at_once() {
    let source: fn(&Path) = |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    let pipe: fn(&Path) = |path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let directory: fn(&Path) = |path| fs::create_dir(path).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"] {
        for make in [source, pipe, directory] {
            let dir = folder(&[]);
            make(&dir.path().join(name));
            refused(ClipTokenizer::open(dir.path()), &[name, "a regular file"]);
            refused(T5Tokenizer::open(dir.path()), &[name, "a regular file"]);
        }
    }
    // Holes up to a size that no tokenizer has.
    let dir = folder(&[]);
    fs::File::create(dir.path().join("spiece.model")).unwrap().set_len(1 << 33).unwrap();
    refused(T5Tokenizer::open(dir.path()), &["spiece.model", "at most 16777216"]);
}

#[test]
fn a_link_that_leads_nowhere_is_no_absent_file() {
    for name in ["tokenizer_config.json", "added_tokens.json", "tokenizer.json"] {
        let dir = folder(&clip_files());
        std::os::unix::fs::symlink("nowhere", dir.path().join(name)).unwrap();
        let error = ClipTokenizer::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Weights { .. }) && error.to_string().contains(name), "{error}");
    }
}

// ---- character maps --------------------------------------------------------------------------------------

#[test]
fn character_maps_are_checked_in_both_layouts() {
    // In base64: nothing, no length, no trie, a trie of one unit whose children are outside.
    for map in ["", "AAAA", "AAAAAA==", "BAAAAAD+//8=", "no base64"] {
        let dir = changed(T5_JSON, |json| {
            json["normalizer"]["normalizers"][0]["precompiled_charsmap"] = json!(map);
        });
        refused(T5Tokenizer::open(dir.path()), &["tokenizer.json", "character map"]);
    }
    let dir = changed(T5_JSON, |json| {
        json["normalizer"]["normalizers"][0]["precompiled_charsmap"] = json!(7);
    });
    refused(T5Tokenizer::open(dir.path()), &["tokenizer.json", "character map"]);
    // The root with a value's bit, and children outside: NormalizerSpec { precompiled_charsmap }.
    let map = [1024_u32, 0xffff_fc00].map(u32::to_le_bytes).concat();
    let map = [map, vec![0xff; 1020]].concat();
    let length = [(map.len() % 128) as u8 | 128, (map.len() / 128) as u8];
    let outer = map.len() + 3;
    let spec =
        [vec![0x1a, (outer % 128) as u8 | 128, (outer / 128) as u8, 0x12], length.to_vec(), map].concat();
    let dir = folder(&[("spiece.model", [read(SPIECE), spec].concat())]);
    refused(T5Tokenizer::open(dir.path()), &["spiece.model", "character map"]);
}

/// Cut where a piece ends, every message in it is whole.
#[test]
fn a_sentencepiece_model_without_its_end_is_refused() {
    let whole = read(SPIECE);
    let mut end = 0;
    for _ in 0..500 {
        assert_eq!((whole[end], whole[end + 1] < 128), (0x0a, true), "a piece of less than 128 bytes");
        end += 2 + usize::from(whole[end + 1]);
    }
    let dir = folder(&[("spiece.model", whole[..end].to_vec())]);
    refused(T5Tokenizer::open(dir.path()), &["spiece.model", "cut off"]);
}

// ---- ids -------------------------------------------------------------------------------------------------

#[test]
fn ids_that_are_no_u32_or_stand_twice_are_refused() {
    let vocab = String::from_utf8(read("a/pipeline/tokenizer/vocab.json")).unwrap();
    let start = vocab.rfind(", ").unwrap();
    for (entry, word) in [
        (r#""zz": 4294967296"#, "4294967296"),
        (r#""zz": -1"#, "-1"),
        (r#""zz": 1.5"#, "1.5"),
        (r#""zz": "5""#, "5"),
        (r#""zz": null"#, "null"),
        (r#""zz": 5"#, "id 5 stands twice"),
        (r#""!": 5000"#, "stands twice"),
    ] {
        let vocab = format!("{}, {entry}{}", &vocab[..start], &vocab[start..]);
        let dir = folder(&[("vocab.json", vocab.into_bytes()), clip_files().remove(1)]);
        refused(ClipTokenizer::open(dir.path()), &["vocab.json", word]);
    }
    for id in [json!(1_u64 << 32), json!("5"), json!(null), json!(-1), json!(5)] {
        let dir = changed(CLIP_JSON, |json| json["model"]["vocab"]["zz"] = id);
        refused(ClipTokenizer::open(dir.path()), &["tokenizer.json"]);
        let dir = folder(
            &[clip_files(), vec![("added_tokens.json", br#"{"<toy>": 4294967296}"#.to_vec())]].concat(),
        );
        refused(ClipTokenizer::open(dir.path()), &["added_tokens.json", "<toy>", "4294967296"]);
    }
}

/// Of what is read and of what is not: two readers take one of the two, each its own.
#[test]
fn names_that_stand_twice_in_a_tokenizer_are_refused() {
    for (golden, name) in [(CLIP_JSON, "truncation"), (T5_JSON, "normalizer"), (CLIP_JSON, "unknown")] {
        let text = String::from_utf8(read(golden)).unwrap();
        let text = text.replacen('{', &format!("{{{name:?}: null, {name:?}: null, "), 1);
        let dir = folder(&[("tokenizer.json", text.into_bytes())]);
        let error = match golden == CLIP_JSON {
            true => ClipTokenizer::open(dir.path()).map(drop),
            false => T5Tokenizer::open(dir.path()).map(drop),
        };
        refused(error, &["tokenizer.json", name, "stands there twice"]);
    }
}

// ---- what the other files say ----------------------------------------------------------------------------

#[test]
fn added_tokens_are_read_from_every_file_that_has_them() {
    let token = json!({"content": "<toy>", "normalized": true, "special": false});
    let files = [
        ("added_tokens.json", json!({"<toy>": 914})),
        ("tokenizer_config.json", json!({"added_tokens_decoder": {"914": token}})),
        ("special_tokens_map.json", json!({"additional_special_tokens": ["<toy>"]})),
        ("special_tokens_map.json", json!({"additional_special_tokens": [{"content": "<toy>"}]})),
        ("tokenizer_config.json", json!({"extra_special_tokens": {"toy_token": "<toy>"}})),
    ];
    for (name, json) in files {
        let bytes = json.to_string().into_bytes();
        let dir = folder(&[("tokenizer.json", read(CLIP_JSON)), (name, bytes.clone())]);
        let ids = clip_ids(dir.path(), "a <toy> cat");
        assert_eq!(ids[2], 914, "{json}: {ids:?}");
        assert_eq!(ClipTokenizer::open(dir.path()).unwrap().vocab_size(), 915);
        // The other layout has more tokens.
        let bytes = String::from_utf8(bytes).unwrap().replace("914", "1000").into_bytes();
        let dir = folder(&[clip_files(), vec![(name, bytes)]].concat());
        assert_eq!(clip_ids(dir.path(), "a <toy> cat")[2], 1000, "{json}");
    }
    // An id that cannot be had.
    let dir =
        folder(&[("tokenizer.json", read(CLIP_JSON)), ("added_tokens.json", br#"{"<toy>": 920}"#.to_vec())]);
    refused(ClipTokenizer::open(dir.path()), &["<toy>", "920", "914"]);
}

#[test]
fn a_space_goes_before_every_text_unless_the_tokenizer_is_not_legacy() {
    let with = |config: &str| {
        let dir = folder(&[("spiece.model", read(SPIECE)), ("tokenizer_config.json", config.into())]);
        t5_ids(dir.path(), "a</s>b")
    };
    let always = with("{}");
    let first = with(r#"{"legacy": false}"#);
    assert_eq!(with(r#"{"legacy": true}"#), always);
    assert_eq!(with(r#"{"legacy": null}"#), always);
    // As in the golden b of the same pieces: a space of its own, or none, before the b.
    let end = always.iter().position(|&id| id == 1).unwrap();
    assert_eq!(always[..=end], first[..=end]);
    assert_ne!(always[end..], first[end..]);
    assert_ne!(with(r#"{"add_prefix_space": false}"#)[..=end], always[..=end]);
    let dir =
        folder(&[("spiece.model", read(SPIECE)), ("tokenizer_config.json", br#"{"legacy": "no"}"#.to_vec())]);
    refused(T5Tokenizer::open(dir.path()), &["tokenizer_config.json", "legacy"]);
}

#[test]
fn clips_own_longest_prompt_cuts_and_padding_goes_on() {
    let open = |config: &str| {
        let dir = folder(&[("tokenizer.json", read(CLIP_JSON)), ("tokenizer_config.json", config.into())]);
        ClipTokenizer::open(dir.path())
    };
    let text = "cat ".repeat(100);
    let short = open(r#"{"model_max_length": 77}"#).unwrap();
    let none = open(r#"{"model_max_length": 1000000000000000019884624838656}"#).unwrap();
    let (cut, whole) = (short.encode(&text, 248).unwrap(), none.encode(&text, 248).unwrap());
    assert_eq!((cut.len, cut.eos_index, cut.ids.len()), (77, 76, 248));
    assert_eq!(cut.dropped, whole.len - 77);
    assert_eq!(cut.ids[..77], short.encode(&text, 77).unwrap().ids);
    for config in [r#"{"model_max_length": 1}"#, r#"{"model_max_length": "77"}"#] {
        refused(open(config), &["tokenizer_config.json", "model_max_length"]);
    }
}

/// The demo model with another end token in CLIP's config.
#[test]
fn an_end_token_that_clip_does_not_look_for_is_refused() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/pipeline");
    let with = |id: u64| {
        let dir = tempfile::tempdir().unwrap();
        copy(&demo, dir.path());
        let path: PathBuf = dir.path().join("text_encoder/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["eos_token_id"] = json!(id);
        fs::write(&path, config.to_string()).unwrap();
        schnell::pipeline::Model::open(dir.path())
    };
    assert!(with(733).is_ok());
    refused(with(732), &["tokenizer", "733", "732"]);
    refused(with(734), &["text_encoder/config.json", "eos_token_id", "734"]);
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            fs::create_dir(to.join(&name)).unwrap();
            copy(&path, &to.join(&name));
        } else {
            fs::copy(&path, to.join(&name)).unwrap();
        }
    }
}
