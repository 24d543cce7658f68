//! `schnell serve`: the binary on a free port, with the bundled model on the emulator, asked over sockets.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;
#[path = "common/http.rs"]
mod http;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use base64::Engine as _;
use command::*;
use http::*;
use serde_json::{Value, json};

/// For what takes no place in a queue, or waits for it.
static SHARED: LazyLock<Served> =
    LazyLock::new(|| Served::start(&["--size", "64x80", "--max-body", "8KiB", "--max-steps", "20"]));

/// A picture that takes until somebody stops it.
fn endless() -> Value {
    json!({ "prompt": "a red circle", "steps": 50, "stream": true })
}

fn red(more: Value) -> Value {
    let mut body = json!({ "prompt": "a red circle", "seed": 7 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[track_caller]
fn decoded(picture: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(picture["b64_json"].as_str().unwrap()).unwrap()
}

// ---- pictures ----------------------------------------------------------------------------------------------

#[test]
fn pictures_are_those_of_the_command_byte_for_byte() {
    let sandbox = Sandbox::new();
    for (name, seed, more) in [
        ("out.png", "7", &[][..]),
        ("next.png", "8", &[]),
        ("out.jpeg", "7", &[]),
        ("out.webp", "7", &["--height", "80", "--steps", "2"]),
    ] {
        let ran = sandbox.run(quick(&[more, &["--seed", seed, "--output", name]].concat()));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let of = |name: &str| bytes(&sandbox.path(name));

    let answer = SHARED.draw(&red(json!({ "n": 2, "size": "64x64", "model": "demo", "user": "somebody" })));
    assert_eq!(answer.status, 200, "{}", answer.json());
    let (data, format) = (answer.json()["data"].clone(), answer.json()["output_format"].clone());
    assert_eq!((data.as_array().unwrap().len(), format.as_str()), (2, Some("png")));
    assert!(decoded(&data[0]) == of("out.png") && decoded(&data[1]) == of("next.png"));
    assert_eq!((&data[1]["schnell"]["seed"], &data[1]["schnell"]["steps"]), (&json!(8), &json!(1)));

    let answer = SHARED.draw(&red(json!({ "output_format": "jpeg", "quality": "hd" })));
    assert!(decoded(&answer.json()["data"][0]) == of("out.jpeg"));
    let warnings = &answer.json()["data"][0]["schnell"]["warnings"];
    assert!(warnings[0].as_str().unwrap().contains("quality has no effect"), "{warnings}");

    let link = json!({ "output_format": "webp", "response_format": "url", "size": "64x80", "steps": 2 });
    let answer = SHARED.draw(&red(link));
    let url = answer.json()["data"][0]["url"].as_str().unwrap().to_string();
    let path = url.strip_prefix(&format!("http://{}", SHARED.address)).unwrap();
    let file = SHARED.get(path);
    assert_eq!((file.status, file.header("content-type")), (200, Some("image/webp")));
    assert!(file.body == of("out.webp"));
    SHARED.get(&path.replace(".webp", ".png")).is_refusal(404, "picture_not_found", None);
}

#[test]
fn a_stream_tells_of_every_step_and_ends_with_the_picture() {
    let whole = SHARED.draw(&red(json!({ "steps": 3 }))).json();
    let answer = SHARED.draw(&red(json!({ "steps": 3, "stream": true, "partial_images": 2 })));
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let events = answer.events();
    let types: BTreeSet<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert!(types.contains("image_generation.progress"), "{types:?}");
    let steps: Vec<u64> = events.iter().filter_map(|event| event["step"].as_u64()).collect();
    assert!(steps.is_sorted() && steps.contains(&3), "{steps:?}");
    let last = events.last().unwrap();
    assert_eq!((last["type"].as_str(), &last["size"]), (Some("image_generation.completed"), &json!("64x64")));
    assert_eq!(decoded(last), decoded(&whole["data"][0]));
    assert_eq!(last["schnell"]["receipt"], whole["data"][0]["schnell"]["receipt"]);
}

#[test]
fn a_stream_shows_what_pictures_look_like_on_their_way() {
    let body = json!({ "n": 2, "steps": 8, "stream": true, "partial_images": 4 });
    let events = SHARED.draw(&red(body)).events();
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let partial = of("image_generation.partial_image");
    // Whoever reads slowly misses some, and never sees one twice or of a picture that is there.
    assert!(!partial.is_empty());
    let numbers: Vec<(u64, u64)> = partial
        .iter()
        .map(|event| (event["index"].as_u64().unwrap(), event["partial_image_index"].as_u64().unwrap()))
        .collect();
    assert!(
        numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|(_, number)| *number < 4),
        "{numbers:?}"
    );
    for event in &partial {
        let png = schnell::image::decode(&decoded(event)).unwrap();
        assert_eq!((png.width, png.height, &event["size"]), (8, 8, &json!("64x64")));
    }
    let place = |wanted: &Value| events.iter().position(|event| event == wanted).unwrap();
    let completed = of("image_generation.completed");
    assert!(
        partial
            .iter()
            .all(|event| place(event) < place(completed[event["index"].as_u64().unwrap() as usize]))
    );
    // They change nothing of the pictures.
    let whole = SHARED.draw(&red(json!({ "n": 2, "steps": 8 }))).json();
    assert_eq!(decoded(completed[1]), decoded(&whole["data"][1]));
    let unseen = SHARED.draw(&red(json!({ "partial_images": 4 }))).json();
    let warnings = unseen["data"][0]["schnell"]["warnings"].to_string();
    assert!(warnings.contains("partial_images has no effect without stream"), "{warnings}");
    SHARED.draw(&red(json!({ "partial_images": 51 }))).is_refusal(
        400,
        "invalid_value",
        Some("partial_images"),
    );
}

#[test]
fn without_a_seed_pictures_differ_and_say_how_they_are_drawn_again() {
    let draw = |body: &Value| SHARED.draw(body).json()["data"][0].clone();
    let (a, b) = (draw(&json!({ "prompt": "a red circle" })), draw(&json!({ "prompt": "a red circle" })));
    assert_ne!(a["schnell"]["seed"], b["schnell"]["seed"]);
    let again = draw(&json!({ "prompt": "a red circle", "seed": a["schnell"]["seed"] }));
    assert_eq!(a["b64_json"], again["b64_json"]);
}

// ---- refusals ----------------------------------------------------------------------------------------------

#[test]
fn every_field_is_refused_by_its_name() {
    let cases = [
        (json!({}), 400, "missing_parameter", None),
        (json!(["a red circle"]), 400, "invalid_value", None),
        (json!("a red circle"), 400, "invalid_value", None),
        (json!({ "prompt": 7 }), 400, "invalid_value", Some("prompt")),
        (json!({ "prompt": " \t" }), 400, "invalid_value", Some("prompt")),
        (json!({ "prompt": "a\u{0}b" }), 400, "invalid_value", Some("prompt")),
        (red(json!({ "bogus": 1 })), 400, "unknown_parameter", Some("bogus")),
        (red(json!({ "prompt": "a".repeat(4001) })), 413, "prompt_too_long", Some("prompt")),
        (
            red(json!({ "negative_prompt": "a".repeat(4001) })),
            413,
            "prompt_too_long",
            Some("negative_prompt"),
        ),
        (red(json!({ "n": 0 })), 400, "invalid_value", Some("n")),
        (red(json!({ "n": 5 })), 400, "invalid_value", Some("n")),
        (red(json!({ "n": -1 })), 400, "invalid_value", Some("n")),
        (red(json!({ "n": u64::MAX })), 400, "invalid_value", Some("n")),
        (red(json!({ "steps": 0 })), 400, "invalid_value", Some("steps")),
        (red(json!({ "steps": 21 })), 400, "invalid_value", Some("steps")),
        (red(json!({ "size": "64x63" })), 400, "invalid_value", Some("size")),
        (red(json!({ "size": "0x64" })), 400, "invalid_value", Some("size")),
        (red(json!({ "size": "64" })), 400, "invalid_value", Some("size")),
        (red(json!({ "size": "80x80" })), 413, "image_too_large", Some("size")),
        (red(json!({ "size": "8192x8192" })), 413, "image_too_large", Some("size")),
        (red(json!({ "model": "dall-e-3" })), 404, "model_not_found", Some("model")),
        (red(json!({ "user": "a".repeat(257) })), 400, "invalid_value", Some("user")),
        (red(json!({ "response_format": "png" })), 400, "invalid_value", Some("response_format")),
        (red(json!({ "output_format": "gif" })), 400, "invalid_value", Some("output_format")),
        (red(json!({ "guidance": 1e300 })), 400, "invalid_value", Some("guidance")),
        (red(json!({ "seed": -1 })), 400, "invalid_value", Some("seed")),
        (red(json!({ "seed": 0.5 })), 400, "invalid_value", Some("seed")),
        (red(json!({ "late": "estimate" })), 400, "invalid_value", Some("late")),
        (red(json!({ "deadline_ms": 0 })), 400, "invalid_value", Some("deadline_ms")),
        (
            red(json!({ "negative_prompt": "blue", "true_cfg_scale": 2 })),
            400,
            "invalid_value",
            Some("negative_prompt"),
        ),
    ];
    for (body, status, code, param) in cases {
        println!("{body}");
        SHARED.draw(&body).is_refusal(status, code, param);
    }
    for body in ["", "{", "{\"prompt\": \"a\"} x", "\u{feff}{}", "{\"prompt\": \"a\", \"prompt\": \"b\"}"] {
        let code = if body.contains("\"b\"") { "invalid_value" } else { "invalid_json" };
        println!("{body}");
        SHARED.send(&[], body).read().is_refusal(400, code, None);
    }
    // What has no effect for lack of its other half draws, and says so.
    let answer = SHARED.draw(&red(json!({ "negative_prompt": "blue" }))).json();
    assert!(
        answer["data"][0]["schnell"]["warnings"][0].as_str().unwrap().contains("only together"),
        "{answer}"
    );
}

#[test]
fn what_is_not_for_this_server_is_refused() {
    let ask = |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        Connection::open(SHARED.address).ask(method, path, headers, body).read()
    };
    ask("GET", "/nothing", &[], "").is_refusal(404, "unknown_path", None);
    ask("GET", "/v1/images/generations", &[], "").is_refusal(405, "method_not_allowed", None);
    ask("DELETE", "/", &[], "").is_refusal(405, "method_not_allowed", None);
    ask("GET", "/v1/models/dall-e-3", &[], "").is_refusal(404, "model_not_found", Some("model"));
    ask("GET", "/v1/images/../../etc/passwd", &[], "").is_refusal(404, "unknown_path", None);
    ask("GET", "/v1/images/x.png", &[], "").is_refusal(404, "picture_not_found", None);
    ask("GET", "/v1/images/%ff.png", &[], "").is_refusal(404, "picture_not_found", None);
    ask("GET", "/v1/models/%ff", &[], "").is_refusal(404, "model_not_found", Some("model"));
    let path = "/v1/images/generations";
    let json = ("Content-Type", "application/json");
    // A form of another page needs nobody's leave for this type.
    let form = ("Content-Type", "text/plain");
    ask("POST", path, &[form], "{}").is_refusal(415, "unsupported_media_type", None);
    ask("POST", path, &[], "{}").is_refusal(415, "unsupported_media_type", None);
    let zipped = ask("POST", path, &[json, ("Content-Encoding", "gzip")], "{}");
    zipped.is_refusal(415, "unsupported_encoding", None);
    ask("POST", path, &[json, ("Host", "evil.example")], "{}").is_refusal(421, "unknown_host", None);
    ask("GET", "/", &[("Host", "a b")], "").is_refusal(421, "unknown_host", None);
    for host in ["localhost:1", "[::1]", "192.168.0.7:80"] {
        assert_eq!(ask("GET", "/healthz", &[("Host", host)], "").status, 200, "{host}");
    }
    assert_eq!(Connection::open(SHARED.address).write("GET /healthz HTTP/1.0\r\n\r\n").read().status, 200);
    let large = ask("POST", path, &[json], &" ".repeat(9000));
    large.is_refusal(413, "body_too_large", None);
    let chunk = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    let chunked = format!("{chunk}Transfer-Encoding: chunked\r\n\r\n2400\r\n{}\r\n", " ".repeat(0x2400));
    Connection::open(SHARED.address).write(&chunked).read().is_refusal(413, "body_too_large", None);
    let no_chunks = format!("{chunk}Transfer-Encoding: chunked\r\n\r\nxyz\r\n");
    Connection::open(SHARED.address).write(&no_chunks).read().is_refusal(400, "invalid_body", None);
    let empty = ask("POST", path, &[json, ("Idempotency-Key", "")], "{}");
    empty.is_refusal(400, "invalid_idempotency_key", None);
    let many: String = (0..101).map(|i| format!("X-{i}: 1\r\n")).collect();
    let refused =
        Connection::open(SHARED.address).write(&format!("GET /healthz HTTP/1.1\r\n{many}\r\n")).read();
    assert_eq!((refused.status, refused.body.len()), (431, 0));
    // What is no HTTP ends without a word of JSON, and without harm.
    for text in ["\r\n\r\n\r\n", "GET\r\n\r\n", "\u{16}\u{3}\u{1}", "GET / HTTP/9.9\r\n\r\n"] {
        let mut read = Vec::new();
        let mut connection = Connection::open(SHARED.address).write(text);
        connection.0.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = std::io::Read::read_to_end(&mut connection.0, &mut read);
        assert!(!read.starts_with(b"HTTP/1.1 2") && !read.starts_with(b"HTTP/1.1 5"), "{text}");
    }
    assert_eq!(SHARED.get("/healthz").status, 200);
}

/// Bodies made of pieces, most of them no requests.
#[test]
fn two_hundred_hostile_bodies_get_typed_errors() {
    let names = ["prompt", "n", "size", "seed", "steps", "stream", "model", "\u{202e}", "__proto__", "x"];
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    let values =
        ["null", "-1", "1e999", "\"\"", "\"\\ud800\"", "{}", "[[]]", "\"NaN\"", "18446744073709551616"];
    let mut count = 0;
    for (i, name) in names.iter().enumerate() {
        for (k, value) in values.iter().copied().chain([deep.as_str()]).enumerate() {
            let name = json!(name);
            // Whole objects, and such with their ends cut off; none says what to draw.
            let whole = format!("{{\"prompt\": \"\", {name}: {value}}}");
            let at = (0..whole.len() - 1 - (i + k) % 7).rev().find(|at| whole.is_char_boundary(*at)).unwrap();
            for body in [&whole, &whole[..at]] {
                let answer = SHARED.send(&[], body).read();
                assert!((400..500).contains(&answer.status), "{} for {body}", answer.status);
                answer.error();
                count += 1;
            }
        }
    }
    assert_eq!(count, 200);
    assert_eq!(SHARED.get("/readyz").status, 200);
}

// ---- time --------------------------------------------------------------------------------------------------

#[test]
fn deadlines_are_admitted_by_what_pictures_took() {
    let served = Served::start(&["--max-steps", "1000"]);
    let asked = |more: Value| served.draw(&red(more));
    asked(json!({ "deadline_ms": 1 })).is_refusal(422, "deadline_impossible", Some("deadline_ms"));
    assert_eq!(asked(json!({ "deadline_ms": 100_000 })).status, 200);
    // One step is known by now; of so many only some are in time. On a machine that has slowed down since, the picture is given up.
    let fewer = |ms| asked(json!({ "deadline_ms": ms, "late": "fewer_steps", "steps": 1000 }));
    let answer = [4000, 8000, 12_000, 16_000].into_iter().map(fewer).find(|answer| answer.status == 200);
    let answer = answer.expect("none of them was drawn in time").json();
    let details = &answer["data"][0]["schnell"];
    assert!(details["steps"].as_u64().is_some_and(|steps| steps < 1000), "{answer}");
    assert!(details["warnings"][0].as_str().unwrap().contains("to be there in time"), "{answer}");
    // Behind a picture of minutes nothing is there in seconds.
    let mut long = served.send(&[], &endless().to_string());
    long.read_until("\"step\":1");
    let late = asked(json!({ "deadline_ms": 5000 }));
    late.is_refusal(503, "deadline_exceeded", Some("deadline_ms"));
    assert!(late.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert_eq!(served.metric("schnell_refusals_total{reason=\"deadline_impossible\"}"), 1.0);
    assert!(served.metric("schnell_refusals_total{reason=\"deadline_exceeded\"}") >= 1.0);
}

#[test]
fn a_full_queue_pushes_back_and_who_goes_makes_room() {
    let served = Served::start(&["--queue", "1", "--max-n", "1"]);
    let mut first = served.send(&[], &endless().to_string());
    first.read_until("\"step\":2");
    let mut second = served.send(&[], &endless().to_string());
    assert!(second.read_until("\"ahead\"").contains("\"ahead\":1"));
    let full = served.draw(&red(json!({})));
    full.is_refusal(429, "queue_full", None);
    assert!(full.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    // One that waits goes, and its place is free at once; then one that is drawn.
    drop(second);
    served.until("a place is free", |served| served.metric("schnell_cancelled_total") == 1.0);
    let third = served.send(&[], &red(json!({})).to_string());
    served.until("it waits", |served| served.metric("schnell_queue_pictures{kind=\"waiting\"}") == 1.0);
    drop(first);
    assert_eq!(third.read().status, 200);
    assert_eq!(served.metric("schnell_cancelled_total"), 2.0);
    // Of the endless one nothing was drawn, one was.
    assert_eq!(served.metric("schnell_pictures_total"), 1.0);
}

#[test]
fn who_is_slow_is_cut_off() {
    let served = Served::start(&["--timeout", "500ms"]);
    let begun = Instant::now();
    let head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n";
    let whole = format!("{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{");
    let body = Connection::open(served.address).write(&whole);
    body.read().is_refusal(408, "request_timeout", None);
    // Neither one that says nothing nor one that stops within its headers is kept.
    for text in ["", "GET / HT", head, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut connection = Connection::open(served.address).write(text);
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut connection.0, &mut read).unwrap();
        let is_answered = read.starts_with(b"HTTP/1.1 200");
        assert_eq!(is_answered, text.contains("healthz"), "{}", String::from_utf8_lossy(&read));
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    served.until("they are gone", |served| served.metric("schnell_connections") == 1.0);
}

#[test]
fn a_signal_drains() {
    let mut served = Served::start(&[]);
    let mut first = served.send(&[], &red(json!({ "steps": 6, "stream": true })).to_string());
    let mut head = first.read_until("\"step\":1");
    let second = served.send(&[], &red(json!({})).to_string());
    served.until("it waits", |served| served.metric("schnell_queue_pictures{kind=\"waiting\"}") == 1.0);
    served.signal("-TERM");
    served.wait_for("draining");
    let refused = served.draw(&red(json!({})));
    refused.is_refusal(503, "draining", None);
    assert_eq!(refused.header("retry-after"), Some("10"));
    assert_eq!((served.get("/readyz").status, served.get("/healthz").status), (503, 200));
    head += &first.read_until("image_generation.completed");
    assert_eq!(second.read().status, 200);
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
    served.wait_for("drained");
}

#[test]
fn nothing_is_drawn_before_the_server_is_ready() {
    // Warming up takes a picture of each.
    let sizes = ["64x80", "80x64", "80x80", "64x96", "96x64", "80x96", "96x80"];
    let flags: Vec<&str> = sizes.iter().flat_map(|size| ["--size", size]).collect();
    let mut served = Served::launch(Sandbox::new(), &flags, &[]);
    let early = served.draw(&red(json!({})));
    early.is_refusal(503, "loading", None);
    assert_eq!(early.header("retry-after"), Some("5"));
    assert_eq!((served.get("/readyz").status, served.get("/healthz").status), (503, 200));
    assert_eq!(served.metric("schnell_state{state=\"loading\"}"), 1.0);
    served.signal("-TERM");
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut served = Served::start(&[]);
    let mut first = served.send(&[], &endless().to_string());
    first.read_until("\"step\":1");
    served.signal("-INT");
    served.wait_for("draining");
    served.signal("-INT");
    assert_eq!(served.child.wait().unwrap().signal(), Some(2));
}

// ---- again, and by whom ------------------------------------------------------------------------------------

#[test]
fn a_key_is_answered_once_and_the_same() {
    let served = Served::start(&[]);
    let body = json!({ "prompt": "a red circle" }).to_string();
    let send = |key: &str, body: &str| served.send(&[("Idempotency-Key", key)], body);
    // The one that asked goes; what it asked for is drawn for when it comes again.
    drop(send("a", &body));
    served.until("it is drawn", |served| served.metric("schnell_pictures_total") == 1.0);
    let (b, c) = (send("b", &body), send("b", &body));
    let (b, c) = (b.read(), c.read());
    assert_eq!((b.status, c.status), (200, 200));
    assert!(b.body == c.body, "two answers to one key");
    let replayed = |answer: &Answer| answer.header("idempotent-replayed") == Some("true");
    assert!(replayed(&b) != replayed(&c));
    let again = send("a", &body).read();
    assert!(replayed(&again) && again.body != b.body);
    assert_eq!(served.metric("schnell_pictures_total"), 2.0);
    let other = send("a", &red(json!({})).to_string()).read();
    other.is_refusal(422, "idempotency_key_reused", None);
    // A refusal is none that is remembered.
    send("d", "{}").read().is_refusal(400, "missing_parameter", None);
    assert_eq!(send("d", &body).read().status, 200);
}

#[test]
fn keys_are_asked_for_where_there_are_any() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("keys"), "the-first-key-of-two\n\nthe-second-key-of-two\n").unwrap();
    let variable = ("SCHNELL_API_KEY", "one-of-the-environment");
    let served = Served::start_in(sandbox, &["--api-key-file", "keys", "--model-name", "ours"], &[variable]);
    let body = red(json!({ "response_format": "url" })).to_string();
    let with = |key: &str| served.send(&[("Authorization", key)], &body).read();
    for key in
        ["", "Bearer ", "Bearer the-first-key-of-tw", "Basic the-first-key-of-two", "the-first-key-of-two"]
    {
        with(key).is_refusal(401, "invalid_api_key", None);
    }
    served.draw(&red(json!({}))).is_refusal(401, "invalid_api_key", None);
    served.get("/v1/models").is_refusal(401, "invalid_api_key", None);
    for key in ["the-first-key-of-two", "the-second-key-of-two", "one-of-the-environment"] {
        let answer = with(&format!("Bearer {key}"));
        assert_eq!(answer.status, 200);
        // A picture's name is its key.
        let url = answer.json()["data"][0]["url"].as_str().unwrap().to_string();
        assert_eq!(served.get(url.split_at(url.find("/v1").unwrap()).1).status, 200);
    }
    for path in ["/", "/healthz", "/readyz", "/metrics"] {
        assert_eq!(served.get(path).status, 200);
    }
}

#[test]
fn numbers_are_those_of_what_was_done() {
    let served = Served::start(&[]);
    for _ in 0..2 {
        assert_eq!(served.draw(&red(json!({ "steps": 2 }))).status, 200);
    }
    served.draw(&json!({}));
    for (name, value) in [
        ("schnell_pictures_total", 2.0),
        ("schnell_prompts_total{cache=\"miss\"}", 1.0),
        ("schnell_prompts_total{cache=\"hit\"}", 1.0),
        ("schnell_stage_seconds_count{stage=\"step\"}", 4.0),
        ("schnell_stage_seconds_count{stage=\"vae\"}", 2.0),
        ("schnell_stage_seconds_count{stage=\"file\"}", 2.0),
        ("schnell_answer_seconds_count", 2.0),
        ("schnell_queue_pictures{kind=\"limit\"}", 16.0),
        ("schnell_refusals_total{reason=\"missing_parameter\"}", 1.0),
        ("schnell_http_requests_total{endpoint=\"/v1/images/generations\",status=\"200\"}", 2.0),
        ("schnell_state{state=\"ready\"}", 1.0),
    ] {
        assert_eq!(served.metric(name), value, "{name}");
    }
    assert!(served.metric("schnell_plan_bytes{kind=\"arena\"}") > 1e6);
}

// ---- the page, and the command -----------------------------------------------------------------------------

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let text = |path: &str| {
        let answer = SHARED.get(path);
        assert_eq!(answer.status, 200);
        assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
        String::from_utf8(answer.body).unwrap()
    };
    let (page, style, script) = (text("/"), text("/style.css"), text("/app.js"));
    for file in [&page, &style, &script] {
        assert!(!file.contains("://"), "a link to elsewhere");
    }
    // Every element that the script asks for is there.
    let asked = script.split("$(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let asked: BTreeSet<&str> = asked.collect();
    assert!(asked.len() > 20, "{asked:?}");
    for id in asked {
        assert!(page.contains(&format!("id=\"{id}\"")), "no element {id}");
    }
}

#[test]
fn flags_that_cannot_be_are_refused() {
    let sandbox = Sandbox::new();
    // Where nothing is refused before, this is: nothing waits for a server that has started.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let serve = |more: &[&str]| -> Vec<String> {
        let args = ["serve", "--device", "emulator", "--width", "64", "--height", "64", "--listen", &taken];
        args.iter().chain(more).map(|arg| arg.to_string()).collect()
    };
    let refuses = |more: &[&str], code, words: &[&str]| {
        sandbox.refuses(serve(more), code, words);
    };
    refuses(&["--max-n", "17"], 2, &["--max-n 17", "--queue 16"]);
    refuses(&["--max-steps", "3"], 2, &["--max-steps 3", "4 steps"]);
    refuses(&["--size", "64"], 2, &["`64` is no size"]);
    refuses(&["--size", "64x63"], 2, &["height 63"]);
    refuses(&["--keep", "1MiB"], 2, &["--keep 1048576", "one request"]);
    refuses(&["--timeout", "0s"], 2, &["--timeout"]);
    refuses(&["--max-body", "1GiB"], 2, &["--max-body"]);
    refuses(&["--public-url", "pictures.example"], 2, &["--public-url"]);
    refuses(&["--api-key-file", "none"], 7, &["none"]);
    refuses(&["--budget", "1MiB"], 4, &["--budget"]);
    std::fs::write(sandbox.path("keys"), "short\n").unwrap();
    refuses(&["--api-key-file", "keys"], 2, &["keys: a key of 5 bytes can be guessed"]);
    std::fs::write(sandbox.path("keys"), "\n").unwrap();
    refuses(&["--api-key-file", "keys"], 2, &["no key in it"]);
    refuses(&[], 7, &["cannot listen on"]);
}
