//! `docs/requirements.md` says nothing of tests and records that are not there, and leaves no point out.

use std::collections::BTreeSet;
use std::path::Path;

const FILE: &str = "docs/requirements.md";
const POINTS: usize = 65;
/// How a point can stand.
const STATES: [&str; 4] = ["done", "measured", "answered", "open"];

/// One numbered point.
struct Point {
    number: usize,
    state: String,
    text: String,
}

fn points() -> Vec<Point> {
    let text = std::fs::read_to_string(FILE).unwrap();
    let mut points: Vec<Point> = Vec::new();
    for line in text.lines() {
        let numbered = line.split_once(". **").and_then(|(number, rest)| Some((number.parse().ok()?, rest)));
        match (numbered, points.last_mut()) {
            (Some((number, rest)), _) => {
                let (state, text) =
                    rest.split_once("** ").unwrap_or_else(|| panic!("point {number}: no state"));
                points.push(Point { number, state: state.to_string(), text: text.to_string() });
            }
            (None, Some(point)) if line.starts_with("   ") => point.text += line,
            _ => {}
        }
    }
    points
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// `file::test` of those that are quoted.
fn tests(text: &str) -> Vec<(&str, &str)> {
    quoted(text)
        .into_iter()
        .filter_map(|quote| quote.split_once("::"))
        .filter(|(file, _)| file.ends_with(".rs") || file.ends_with(".py"))
        .collect()
}

/// The functions that are tests of the file, in its modules, too; ignored ones do not count. Python's begin with `test_`.
fn tests_of(file: &str) -> BTreeSet<String> {
    fn add(items: &[syn::Item], found: &mut BTreeSet<String>) {
        for item in items {
            match item {
                syn::Item::Fn(item) => {
                    let has = |name: &str| item.attrs.iter().any(|attribute| attribute.path().is_ident(name));
                    if has("test") && !has("ignore") {
                        found.insert(item.sig.ident.to_string());
                    }
                }
                syn::Item::Mod(item) => {
                    if let Some((_, items)) = &item.content {
                        add(items, found);
                    }
                }
                _ => {}
            }
        }
    }
    let source = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{FILE} names {file}: {e}"));
    if file.ends_with(".py") {
        let tests = source.lines().filter_map(|line| line.strip_prefix("def ")?.split('(').next());
        return tests.filter(|name| name.starts_with("test_")).map(str::to_string).collect();
    }
    let mut found = BTreeSet::new();
    add(&syn::parse_file(&source).unwrap().items, &mut found);
    found
}

#[test]
fn every_point_is_there_once_with_a_state() {
    let points = points();
    let numbers: Vec<usize> = points.iter().map(|point| point.number).collect();
    assert_eq!(numbers, (1..=POINTS).collect::<Vec<_>>());
    for Point { number, state, text } in &points {
        assert!(STATES.contains(&&state[..]), "point {number}: {state}");
        assert!(text.len() > 20, "point {number} says nothing");
    }
}

#[test]
fn every_test_that_is_named_exists() {
    for Point { number, state, text } in points() {
        let tests = tests(&text);
        assert!(state != "done" || !tests.is_empty(), "point {number} is done, and no test says so");
        for (file, test) in tests {
            assert!(tests_of(file).contains(test), "point {number}: {file} has no test {test}");
        }
    }
}

#[test]
fn every_record_that_is_named_exists() {
    for Point { number, state, text } in points() {
        let records: Vec<&str> =
            quoted(&text).into_iter().filter(|quote| quote.starts_with("benches/record/2")).collect();
        assert!(
            state != "measured" || !records.is_empty(),
            "point {number} is measured, and no record has it"
        );
        for record in records {
            assert!(Path::new(record).is_file(), "point {number}: there is no {record}");
        }
    }
}
