//! Tokenizers against transformers, over the small trained tokenizers of `tests/golden` in every layout that
//! repositories use, and against every way their files can be broken.
//!
//! Pipeline a has CLIP as vocab.json + merges.txt and T5 as tokenizer.json (what FLUX.1-schnell ships), b has CLIP as
//! tokenizer.json and T5 as spiece.model.

use std::fs;
use std::path::{Path, PathBuf};

use schnell::Error;
use schnell::config::ClipPooling;
use schnell::text::tokenizer::{ClipTokenizer, T5Tokenizer, Tokens};
use schnell::weights::SafeTensors;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn clip(pipeline: &str) -> ClipTokenizer {
    ClipTokenizer::open(&golden(&format!("{pipeline}/pipeline/tokenizer"))).unwrap()
}

/// The same without its own limit of 77 tokens.
fn endless_clip(pipeline: &str) -> ClipTokenizer {
    let source = golden(&format!("{pipeline}/pipeline/tokenizer"));
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "tokenizer_config.json" {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    ClipTokenizer::open(dir.path()).unwrap()
}

fn t5(pipeline: &str) -> T5Tokenizer {
    T5Tokenizer::open(&golden(&format!("{pipeline}/pipeline/tokenizer_2"))).unwrap()
}

// ---- the same ids as transformers ------------------------------------------------------------------------

fn check_goldens(key: &str, encode: impl Fn(&str, usize) -> Tokens, pipeline: &str) {
    let golden: serde_json::Value =
        serde_json::from_slice(&fs::read(golden("tokens.json")).unwrap()).unwrap();
    let strings = golden["strings"].as_array().unwrap();
    assert!(strings.len() >= 200, "only {} strings", strings.len());
    let mut wrong = Vec::new();
    for row in strings {
        let text = row["text"].as_str().unwrap();
        let expected: Vec<u32> =
            row[pipeline][key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let got = encode(text, expected.len() + 50);
        if got.ids[..got.len] != expected {
            wrong.push(format!("{text:?}: got {:?}, expected {expected:?}", &got.ids[..got.len]));
        }
        assert_eq!((got.ids.len(), got.dropped), (expected.len() + 50, 0));
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), strings.len(), wrong.join("\n"));
}

#[test]
fn clip_from_vocab_and_merges_equals_transformers() {
    let tokenizer = endless_clip("a");
    check_goldens("clip", |text, len| tokenizer.encode(text, len).unwrap(), "a");
}

#[test]
fn clip_from_tokenizer_json_equals_transformers() {
    let tokenizer = endless_clip("b");
    check_goldens("clip", |text, len| tokenizer.encode(text, len).unwrap(), "b");
}

#[test]
fn t5_from_tokenizer_json_equals_transformers() {
    let tokenizer = t5("a");
    check_goldens("t5", |text, len| tokenizer.encode(text, len).unwrap(), "a");
}

#[test]
fn t5_from_spiece_equals_transformers() {
    let tokenizer = t5("b");
    check_goldens("t5", |text, len| tokenizer.encode(text, len).unwrap(), "b");
}

/// What diffusers fed its encoders: cut and padded.
#[test]
fn padded_ids_equal_what_diffusers_used() {
    for pipeline in ["a", "b"] {
        let (clip, t5) = (clip(pipeline), t5(pipeline));
        let cases: serde_json::Value =
            serde_json::from_slice(&fs::read(golden(&format!("{pipeline}/cases.json"))).unwrap()).unwrap();
        let goldens = SafeTensors::open(&golden(&format!("{pipeline}/goldens.safetensors"))).unwrap();
        let recorded = |case: &str, stage: &str| -> Option<Vec<u32>> {
            let info = goldens.get(&format!("{case}.{stage}"))?;
            let mut bytes = vec![0; info.bytes as usize];
            info.read_at(0, &mut bytes).unwrap();
            Some(bytes.as_chunks::<4>().0.iter().map(|&id| u32::from_le_bytes(id)).collect())
        };
        let mut checked = 0;
        for case in cases["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let prompt = case["prompt"].as_str().unwrap();
            let prompt_2 = case["prompt_2"].as_str().unwrap_or(prompt);
            let t5_length = case["t5_length"].as_u64().unwrap() as usize;
            // Variants of a case keep only the stages that differ.
            if let Some(ids) = recorded(name, "tokens_clip") {
                assert_eq!(clip.encode(prompt, 77).unwrap().ids, ids, "{name}, CLIP");
                checked += 1;
            }
            if let Some(ids) = recorded(name, "tokens_t5") {
                assert_eq!(t5.encode(prompt_2, t5_length).unwrap().ids, ids, "{name}, T5");
                checked += 1;
            }
        }
        assert!(checked >= 8, "{pipeline}: only {checked} checked");
    }
}

/// The published vocabularies: ids recorded with transformers.
#[test]
#[ignore = "needs FLUX.1-schnell's tokenizer folders under $SCHNELL_MODEL"]
fn real_tokenizers_give_the_recorded_ids() {
    let model = PathBuf::from(std::env::var_os("SCHNELL_MODEL").expect("SCHNELL_MODEL is a model folder"));
    let clip = ClipTokenizer::open(&model.join("tokenizer")).unwrap();
    let t5 = T5Tokenizer::open(&model.join("tokenizer_2")).unwrap();
    let cases: [(&str, &[u32], &[u32]); 5] = [
        (
            "A cat holding a sign that says hello world",
            &[71, 1712, 3609, 3, 9, 1320, 24, 845, 21820, 296, 1],
            &[49406, 320, 2368, 5050, 320, 2292, 682, 1563, 3306, 1002, 49407],
        ),
        (
            "a photo of an astronaut riding a horse on mars",
            &[3, 9, 1202, 13, 46, 30059, 7494, 3, 9, 4952, 30, 8113, 1],
            &[49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407],
        ),
        ("", &[1], &[49406, 49407]),
        (
            "FLUX.1 [schnell], 8k, ultra-detailed",
            &[377, 9138, 4, 5, 536, 784, 860, 10361, 13679, 505, 157, 6, 6173, 18, 221, 17, 10990, 1],
            &[49406, 25249, 269, 272, 314, 844, 8117, 34067, 279, 330, 267, 8118, 268, 12609, 49407],
        ),
        (
            "Don't stop! 3.14 (test) <b>x</b>",
            &[1008, 31, 17, 1190, 55, 1877, 2534, 41, 4377, 61, 3, 2, 115, 3155, 226, 2, 87, 115, 3155, 1],
            &[
                49406, 847, 713, 1691, 256, 274, 269, 272, 275, 263, 1628, 264, 283, 321, 285, 343, 34308,
                321, 285, 49407,
            ],
        ),
    ];
    for (text, t5_ids, clip_ids) in cases {
        let tokens = t5.encode(text, 256).unwrap();
        assert_eq!(&tokens.ids[..tokens.len], t5_ids, "T5, {text:?}");
        assert!(tokens.ids[tokens.len..].iter().all(|&id| id == 0));
        let tokens = clip.encode(text, 77).unwrap();
        assert_eq!(&tokens.ids[..tokens.len], clip_ids, "CLIP, {text:?}");
        assert!(tokens.ids[tokens.len..].iter().all(|&id| id == 49407));
    }
    assert_eq!((clip.vocab_size(), t5.vocab_size()), (49408, 32100));
}

// ---- padding and truncation ------------------------------------------------------------------------------

#[test]
fn clip_pads_with_the_end_token() {
    let tokens = clip("a").encode("", 77).unwrap();
    assert_eq!(tokens.ids[..2], [998, 999]);
    assert!(tokens.ids[2..].iter().all(|&id| id == 999));
    assert_eq!((tokens.ids.len(), tokens.len, tokens.eos_index, tokens.dropped), (77, 2, 1, 0));
}

#[test]
fn t5_pads_with_zero() {
    let tokens = t5("a").encode("", 16).unwrap();
    assert_eq!(tokens.ids[0], 1);
    assert!(tokens.ids[1..].iter().all(|&id| id == 0));
    assert_eq!((tokens.ids.len(), tokens.len, tokens.eos_index, tokens.dropped), (16, 1, 0, 0));
}

#[test]
fn what_is_cut_off_is_counted_and_the_end_stays() {
    let text = "a red cat on a hill, ".repeat(20);
    let tokenizers: [Box<dyn Fn(usize) -> Tokens>; 2] = [
        Box::new(|len| endless_clip("b").encode(&text, len).unwrap()),
        Box::new(|len| t5("b").encode(&text, len).unwrap()),
    ];
    for encode in tokenizers {
        let whole = encode(1000);
        assert_eq!(whole.dropped, 0);
        let end = whole.ids[whole.len - 1];
        for max_len in [2, 3, 77, whole.len - 1] {
            let cut = encode(max_len);
            assert_eq!(cut.ids[..max_len - 1], whole.ids[..max_len - 1]);
            assert_eq!(cut.ids[max_len - 1], end);
            let expected = (max_len, max_len - 1, whole.len - max_len);
            assert_eq!((cut.len, cut.eos_index, cut.dropped), expected);
        }
        // Exactly full: nothing to cut, nothing to pad.
        let full = encode(whole.len);
        assert_eq!((full.ids.len(), full.dropped), (whole.len, 0));
        assert_eq!(full.ids[..], whole.ids[..whole.len]);
    }
}

#[test]
fn no_room_for_the_special_tokens_is_an_input_error() {
    assert!(matches!(clip("a").encode("cat", 1), Err(Error::Input(_))));
    assert!(matches!(t5("a").encode("cat", 0), Err(Error::Input(_))));
    assert_eq!(t5("a").encode("cat", 1).unwrap().ids, [1]);
}

#[test]
fn the_pooled_position_is_the_first_end_token() {
    let tokens = clip("a").encode("a <|endoftext|> b", 77).unwrap();
    assert_eq!(tokens.ids[tokens.eos_index], 999);
    assert!(tokens.eos_index < tokens.len - 1, "the prompt's own end token comes first");
    assert_eq!(tokens.pooled_index(ClipPooling::LargestId), tokens.eos_index);
    assert_eq!(tokens.pooled_index(ClipPooling::FirstOf(999)), tokens.eos_index);
    assert_eq!(
        tokens.pooled_index(ClipPooling::FirstOf(5000)),
        0,
        "as transformers: no such id is position 0"
    );
}

#[test]
fn vocabularies_are_as_large_as_their_models_tables() {
    assert_eq!(clip("a").vocab_size(), 1000);
    assert_eq!(clip("b").vocab_size(), 914);
    assert!(t5("a").vocab_size() <= 832);
    assert!(t5("b").vocab_size() <= 960);
}

// ---- broken files ----------------------------------------------------------------------------------------

/// A folder with copies of `files`.
fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn read(path: &str) -> Vec<u8> {
    fs::read(golden(path)).unwrap()
}

/// The error must be about weights and name all of `words`.
#[track_caller]
fn expect_weights_error<T: std::fmt::Debug>(result: schnell::Result<T>, words: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Weights { .. }), "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{error:?} does not name {word:?}");
    }
}

#[test]
fn missing_files_are_named() {
    let empty = folder(&[]);
    expect_weights_error(ClipTokenizer::open(empty.path()), &["tokenizer.json", "vocab.json", "merges.txt"]);
    expect_weights_error(T5Tokenizer::open(empty.path()), &["tokenizer.json", "spiece.model"]);
    let half = folder(&[("vocab.json", read("a/pipeline/tokenizer/vocab.json"))]);
    expect_weights_error(ClipTokenizer::open(half.path()), &["merges.txt"]);
}

#[test]
fn malformed_json_is_named() {
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        let dir = folder(&[(name, b"{".to_vec())]);
        expect_weights_error(ClipTokenizer::open(dir.path()), &[name]);
        expect_weights_error(T5Tokenizer::open(dir.path()), &[name]);
    }
}

#[test]
fn vocabulary_and_merges_must_fit_together() {
    let vocab = read("a/pipeline/tokenizer/vocab.json");
    let merges = read("a/pipeline/tokenizer/merges.txt");
    for (vocab, merges) in [
        (b"[]".to_vec(), merges.clone()),
        (b"{}".to_vec(), merges.clone()),
        (vocab.clone(), b"#version: 0.2\nzzz yyy\n".to_vec()),
        (vocab.clone(), b"#version: 0.2\nonlyone\n".to_vec()),
        (vocab.clone(), vec![0xff; 20]),
    ] {
        let dir = folder(&[("vocab.json", vocab), ("merges.txt", merges)]);
        expect_weights_error(ClipTokenizer::open(dir.path()), &["vocab.json"]);
    }
}

#[test]
fn special_tokens_outside_the_vocabulary_are_named() {
    let config = br#"{"bos_token": "<|startoftext|>", "eos_token": {"content": "<|stop|>"}}"#;
    let dir = folder(&[
        ("tokenizer.json", read("b/pipeline/tokenizer/tokenizer.json")),
        ("tokenizer_config.json", config.to_vec()),
    ]);
    expect_weights_error(ClipTokenizer::open(dir.path()), &["<|stop|>"]);

    // An id that the vocabulary does not give.
    let config = br#"{"added_tokens_decoder": {"7": {"content": "<|endoftext|>", "special": true}}}"#;
    let dir = folder(&[
        ("vocab.json", read("a/pipeline/tokenizer/vocab.json")),
        ("merges.txt", read("a/pipeline/tokenizer/merges.txt")),
        ("tokenizer_config.json", config.to_vec()),
    ]);
    expect_weights_error(ClipTokenizer::open(dir.path()), &["<|endoftext|>", "7", "999"]);
}

#[test]
fn a_tokenizer_that_adds_no_end_token_is_refused() {
    let mut json: serde_json::Value =
        serde_json::from_slice(&read("a/pipeline/tokenizer_2/tokenizer.json")).unwrap();
    json["post_processor"] = serde_json::Value::Null;
    let dir = folder(&[("tokenizer.json", json.to_string().into_bytes())]);
    expect_weights_error(T5Tokenizer::open(dir.path()), &["empty prompt", "[1]"]);
    // The other kind of tokenizer in its place.
    let dir = folder(&[("tokenizer.json", read("b/pipeline/tokenizer/tokenizer.json"))]);
    expect_weights_error(T5Tokenizer::open(dir.path()), &["BPE", "Unigram"]);
}

#[test]
fn other_sentencepiece_models_are_unsupported() {
    // TrainerSpec { model_type: 2 }: BPE.
    let dir = folder(&[("spiece.model", vec![0x12, 2, 0x18, 2])]);
    let error = T5Tokenizer::open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(what) if what.contains("spiece.model")), "{error}");
}

#[test]
fn malformed_sentencepiece_models_are_named() {
    for bytes in [
        &b""[..],                                     // no pieces
        &[0x0a],                                      // a length that is not there
        &[0x0a, 5, 1],                                // a message beyond the end
        &[0xff; 11],                                  // an endless varint
        &[0x0b, 0],                                   // a group, which protocol buffers gave up
        &[0x0a, 4, 0x0a, 2, 0xff, 0xff],              // a piece that is no UTF-8
        &[0x0a, 5, 0x15, 0, 0, 0xc0, 0x7f],           // a score that is NaN
        &[0x0a, 3, 0x15, 0, 0],                       // half a score
        &[0x1a, 3, 0x12, 1, 0],                       // a character map without a length
        &[0x1a, 6, 0x12, 4, 8, 0, 0, 0],              // a trie beyond the end
        &[0x1a, 10, 0x12, 8, 4, 0, 0, 0, 0, 0, 0, 0], // a trie of one unit, whose children are outside
        &[0x0a, 3, 0x0a, 1, b'a'],                    // no end token
    ] {
        let dir = folder(&[("spiece.model", bytes.to_vec())]);
        expect_weights_error(T5Tokenizer::open(dir.path()), &["spiece.model"]);
    }
}

/// Cut anywhere, or with any byte changed, it opens or it is refused, and what opens tokenizes: nothing panics.
#[test]
fn damaged_sentencepiece_models_never_panic() {
    let whole = read("b/pipeline/tokenizer_2/spiece.model");
    let try_one = |bytes: Vec<u8>| {
        let dir = folder(&[("spiece.model", bytes)]);
        if let Ok(tokenizer) = T5Tokenizer::open(dir.path()) {
            tokenizer.encode("ﬁ ａ½ naïve\u{301} 山  ", 32).unwrap();
        }
    };
    for i in 0..150 {
        try_one(whole[..whole.len() * i / 150].to_vec());
        let mut changed = whole.clone();
        // A fixed walk over the file, all bits in turn.
        let position = i * 7919 * 31 % changed.len();
        changed[position] ^= 1 << (i % 8);
        try_one(changed);
    }
}
