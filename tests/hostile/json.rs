//! JSON, damaged: as text where a parser would not let it through, else by its values.

use serde_json::{Map, Value, json};

use crate::judge::Must;
use crate::world::Dice;

/// Stands where a number will be that no [`Value`] holds.
const PLACE: &str = "@number@";

const NUMBERS: [&str; 22] = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9007199254740993",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775809",
    "1e-46",
    "1e39",
    "-1e39",
    "1e308",
    "1e400",
    "-0.0",
    "0.5",
    "NaN",
    "Infinity",
];

/// Text of every unpleasant kind.
pub fn odd_text(dice: &mut Dice) -> String {
    match dice.below(9) {
        0 => String::new(),
        1 => "\u{1b}[2J\u{1b}]0;x\u{7}".to_string(),
        2 => "../../../../etc/passwd".to_string(),
        3 => "x".repeat(1 << dice.below(17)),
        4 => "\u{0}".to_string(),
        5 => "\u{202e}\u{feff}\u{200b}".to_string(),
        6 => "\u{10ffff}e\u{301}\u{fdfa}".repeat(1 + dice.below(40)),
        7 => "-1".to_string(),
        _ => String::from_utf8_lossy(&dice.bytes(12)).into_owned(),
    }
}

fn odd_value(dice: &mut Dice) -> Value {
    match dice.below(10) {
        0 => Value::Null,
        1 => json!(dice.one_in(2)),
        2 => json!(odd_text(dice)),
        3 => json!([]),
        4 => json!({}),
        5 => (0..100).fold(json!(1), |value, _| json!([value])),
        6 => json!(vec![dice.below(9); 1 << dice.below(15)]),
        _ => json!(PLACE),
    }
}

/// All places in `value` at which something stands, as pointers.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    let mut add = |name: String, value: &Value| {
        let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        out.push(at.clone());
        // Vocabularies are long: what is deep in them is drawn from a part of it.
        if out.len() < 4000 {
            places(value, &at, out);
        }
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| add(name.clone(), value)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, value)| add(i.to_string(), value)),
        _ => {}
    }
}

/// Another text in place of `text`, what was done, and what must come of it where the file is needed.
pub fn mutate(dice: &mut Dice, text: &str) -> (Vec<u8>, String, Must) {
    match dice.below(12) {
        0 => {
            let cut = dice.below(text.trim_end().len());
            (text.as_bytes()[..cut].to_vec(), format!("cut at {cut}"), Must::Refuse)
        }
        1 => {
            let mut bytes = text.as_bytes().to_vec();
            let (at, bit) = (dice.below(bytes.len()), dice.below(8));
            bytes[at] ^= 1 << bit;
            (bytes, format!("bit {bit} of byte {at}"), Must::End)
        }
        2 => twice(dice, text),
        3 => {
            let (open, close) = *dice.of(&[("[", "]"), ("{\"a\":", "}")]);
            let depth = 1 << (8 + dice.below(10));
            let deep = format!("{{\"deep\": {}1{}, ", open.repeat(depth), close.repeat(depth));
            (text.replacen('{', &deep, 1).into_bytes(), format!("{depth} deep"), Must::Refuse)
        }
        4 => {
            let junk = *dice.of(&["}", "{}", "x", "\0", "\u{feff}", ",", "[]"]);
            (format!("{text}{junk}").into_bytes(), format!("{junk:?} at the end"), Must::Refuse)
        }
        5 => {
            let utf16 = text.encode_utf16().flat_map(u16::to_le_bytes);
            ([0xff, 0xfe].into_iter().chain(utf16).collect(), "UTF-16".to_string(), Must::Refuse)
        }
        6 => {
            let spaces = dice.of(&[" ", "\n", "\r\n", "\t"]).repeat(1 + dice.below(1000));
            (format!("{spaces}{text}{spaces}").into_bytes(), "spaces around".to_string(), Must::Draw)
        }
        _ => by_value(dice, text),
    }
}

/// A name that stands twice in its object.
fn twice(dice: &mut Dice, text: &str) -> (Vec<u8>, String, Must) {
    let value: Value = serde_json::from_str(text).unwrap();
    let names: Vec<&String> = value.as_object().map(Map::keys).into_iter().flatten().collect();
    let name = dice.of(&names);
    let odd = odd_value(dice).to_string().replace(&format!("{PLACE:?}"), "1");
    let entry = format!("{{{}: {odd}, ", json!(name));
    (text.replacen('{', &entry, 1).into_bytes(), format!("{name} twice"), Must::Refuse)
}

fn by_value(dice: &mut Dice, text: &str) -> (Vec<u8>, String, Must) {
    let mut value: Value = serde_json::from_str(text).unwrap();
    let mut all = Vec::new();
    places(&value, "", &mut all);
    let at = dice.of(&all).clone();
    let (parent, name) = at.rsplit_once('/').unwrap();
    let name = name.replace("~1", "/").replace("~0", "~");
    let mut must = Must::End;
    let what = match dice.below(5) {
        0 => {
            match value.pointer_mut(parent).unwrap() {
                Value::Object(map) => drop(map.remove(&name)),
                Value::Array(list) => drop(list.remove(name.parse().unwrap())),
                _ => {}
            }
            format!("{at} gone")
        }
        1 => {
            let other = value.pointer(dice.of(&all).as_str()).unwrap().clone();
            *value.pointer_mut(&at).unwrap() = other;
            format!("{at} is another value")
        }
        _ => {
            let odd = odd_value(dice);
            *value.pointer_mut(&at).unwrap() = odd;
            format!("{at} is odd")
        }
    };
    let number = *dice.of(&NUMBERS);
    let text = value.to_string();
    let odd = text.replace(&format!("{PLACE:?}"), number);
    if odd != text && ["NaN", "Infinity"].contains(&number) {
        must = Must::Refuse;
    }
    (odd.into_bytes(), format!("{what} ({number})"), must)
}
