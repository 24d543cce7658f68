//! JSON from files, looked through before it is read: what a parser would take without a word, or at a cost that no bound
//! on the file's length holds. A name that stands twice is one of two meanings; a list of millions becomes gigabytes.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What a document may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of names in one object.
    pub names: usize,
    /// Of values in one list.
    pub values: usize,
    /// Of bytes in one name.
    pub name_bytes: usize,
}

/// Of config files and indices: FLUX.1's largest index names 1,442 tensors, a vocabulary in a config 50,000 words.
pub(crate) const CONFIG: Limits = Limits { names: 1 << 18, values: 1 << 18, name_bytes: 1 << 12 };

/// Refuses what is not JSON, names that stand twice in one object, and what goes beyond `limits`.
pub(crate) fn check(bytes: &[u8], limits: &Limits) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Value(limits).deserialize(&mut deserializer)?;
    deserializer.end()
}

struct Value<'a>(&'a Limits);

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > self.0.name_bytes {
                return Err(A::Error::custom(format!("a name of {} bytes", name.len())));
            }
            if names.len() == self.0.names {
                return Err(A::Error::custom(format!("an object of more than {} names", self.0.names)));
            }
            map.next_value_seed(Value(self.0))?;
            if let Some(twice) = names.replace(name) {
                return Err(A::Error::custom(format!("{twice:?} stands there twice")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut len = 0;
        while list.next_element_seed(Value(self.0))?.is_some() {
            len += 1;
            if len > self.0.values {
                return Err(A::Error::custom(format!("a list of more than {} values", self.0.values)));
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        IgnoredAny.visit_newtype_struct(deserializer).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits { names: 3, values: 4, name_bytes: 5 };

    #[test]
    fn plain_documents_pass() {
        for text in ["{}", "[]", "null", r#"{"a": {"a": [1, -2, 3.5, "a"]}, "b": true, "c": null}"#] {
            check(text.as_bytes(), &SMALL).unwrap();
        }
    }

    #[test]
    fn what_is_refused_is_named() {
        for (text, words) in [
            (r#"{"a": 1, "b": {"x": 1, "x": 2}}"#, "\"x\" stands there twice"),
            (r#"{"a": 1, "\u0061": 2}"#, "\"a\" stands there twice"),
            (r#"{"abcdef": 1}"#, "a name of 6 bytes"),
            (r#"{"a": 1, "b": 2, "c": 3, "d": 4}"#, "more than 3 names"),
            ("[[1, 2, 3, 4, 5]]", "more than 4 values"),
            ("{} {}", "trailing"),
            ("{\"a\": }", "expected value"),
        ] {
            let refusal = check(text.as_bytes(), &SMALL).unwrap_err().to_string();
            assert!(refusal.contains(words), "{text}: {refusal}");
        }
        let deep = "[".repeat(100_000);
        assert!(check(deep.as_bytes(), &CONFIG).unwrap_err().to_string().contains("recursion"));
    }
}
