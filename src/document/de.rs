//! From a [`Document`] back to a Rust state, numbers exact.

use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer as _, Visitor, value::StrDeserializer};

use super::{Document, discreet::without_values};

/// A document that is not what the state's type wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeError(String);

impl fmt::Display for DeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DeError {}

impl de::Error for DeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(without_values(&message.to_string()))
    }
}

/// The document as a state.
pub fn from_document<T: DeserializeOwned>(document: &Document) -> Result<T, DeError> {
    T::deserialize(DocumentReader(document))
}

/// A whole number's digits, from any way to write it (`100`, `1e2`, `100.0`).
fn whole(text: &str) -> Option<String> {
    if !text.contains(['.', 'e', 'E']) {
        return Some(text.to_owned());
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i32 = exponent.trim_start_matches('+').parse().ok()?;
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{integer}{fraction}");
    let point = i32::try_from(integer.len()).ok()?.checked_add(exponent)?;
    // More digits than any integer type has.
    if point > 64 {
        return None;
    }
    let split = usize::try_from(point.max(0)).ok()?;
    let (head, tail) = digits.split_at(split.min(digits.len()));
    if tail.bytes().any(|digit| digit != b'0') {
        return None;
    }
    let zeros = "0".repeat(split.saturating_sub(digits.len()));
    let head = format!("{head}{zeros}");
    let head = head.trim_start_matches('0');
    Some(if head.is_empty() {
        "0".to_owned()
    } else {
        format!("{sign}{head}")
    })
}

#[derive(Clone, Copy)]
struct DocumentReader<'de>(&'de Document);

impl<'de> DocumentReader<'de> {
    fn unexpected(self, expected: &dyn de::Expected) -> DeError {
        let found = match self.0 {
            Document::Null => de::Unexpected::Unit,
            Document::Bool(v) => de::Unexpected::Bool(*v),
            Document::String(v) => de::Unexpected::Str(v),
            Document::Number(_) => de::Unexpected::Other("number"),
            Document::List(_) => de::Unexpected::Seq,
            Document::Map(_) => de::Unexpected::Map,
        };
        de::Error::invalid_type(found, expected)
    }

    fn integer<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        let Document::Number(text) = self.0 else {
            return Err(self.unexpected(&visitor));
        };
        let Some(digits) = whole(text) else {
            return Err(self.unexpected(&visitor));
        };
        if let Ok(v) = digits.parse::<u64>() {
            visitor.visit_u64(v)
        } else if let Ok(v) = digits.parse::<i64>() {
            visitor.visit_i64(v)
        } else if let Ok(v) = digits.parse::<i128>() {
            visitor.visit_i128(v)
        } else if let Ok(v) = digits.parse::<u128>() {
            visitor.visit_u128(v)
        } else {
            Err(self.unexpected(&visitor))
        }
    }

    fn float<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.0 {
            Document::Number(text) => match text.parse::<f64>() {
                Ok(v) if v.is_finite() => visitor.visit_f64(v),
                _ => Err(self.unexpected(&visitor)),
            },
            _ => Err(self.unexpected(&visitor)),
        }
    }
}

macro_rules! all {
    ($to:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
            self.$to(visitor)
        })*
    };
}

impl<'de> de::Deserializer<'de> for DocumentReader<'de> {
    type Error = DeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.0 {
            Document::Null => visitor.visit_unit(),
            Document::Bool(v) => visitor.visit_bool(*v),
            Document::Number(text) => {
                if let Ok(v) = text.parse::<u64>() {
                    visitor.visit_u64(v)
                } else if let Ok(v) = text.parse::<i64>() {
                    visitor.visit_i64(v)
                } else {
                    self.float(visitor)
                }
            }
            Document::String(v) => visitor.visit_borrowed_str(v),
            Document::List(items) => {
                let mut items = Items(items.iter());
                let value = visitor.visit_seq(&mut items)?;
                match items.0.len() {
                    0 => Ok(value),
                    left => Err(DeError(format!("a list with {left} items too many"))),
                }
            }
            Document::Map(members) => visitor.visit_map(Members {
                rest: members.iter(),
                value: None,
            }),
        }
    }

    all! { integer: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
    deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 }
    all! { float: deserialize_f32 deserialize_f64 }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        let Document::List(items) = self.0 else {
            return self.deserialize_any(visitor);
        };
        let byte = |item: &Document| match item {
            Document::Number(text) => text.parse::<u8>().ok(),
            _ => None,
        };
        match items.iter().map(byte).collect::<Option<Vec<u8>>>() {
            Some(bytes) => visitor.visit_byte_buf(bytes),
            None => Err(self.unexpected(&visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.0 {
            Document::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        match self.0 {
            Document::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            Document::Map(members) if members.len() == 1 => {
                let (name, content) = members.iter().next().ok_or_else(|| self.unexpected(&visitor))?;
                visitor.visit_enum(Variant {
                    name,
                    content: DocumentReader(content),
                })
            }
            _ => Err(self.unexpected(&visitor)),
        }
    }

    serde::forward_to_deserialize_any! {
        bool char str string unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de>(std::slice::Iter<'de, Document>);

impl<'de> de::SeqAccess<'de> for &mut Items<'de> {
    type Error = DeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DeError> {
        self.0
            .next()
            .map(|item| seed.deserialize(DocumentReader(item)))
            .transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Members<'de> {
    rest: std::collections::btree_map::Iter<'de, String, Document>,
    value: Option<(&'de str, &'de Document)>,
}

impl<'de> de::MapAccess<'de> for Members<'de> {
    type Error = DeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DeError> {
        let Some((key, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some((key, value));
        seed.deserialize(Key(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DeError> {
        let (key, value) = self
            .value
            .take()
            .ok_or_else(|| DeError("a value without a key".to_owned()))?;
        seed.deserialize(DocumentReader(value))
            .map_err(|DeError(text)| match text.strip_prefix("at `") {
                Some(rest) if rest.starts_with('[') => DeError(format!("at `{key}{rest}")),
                Some(rest) => DeError(format!("at `{key}.{rest}")),
                None => DeError(format!("at `{key}`: {text}")),
            })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// A map key: text that may stand for a number or a boolean.
struct Key<'de>(&'de str);

macro_rules! parsed {
    ($($method:ident $visit:ident $kind:ty;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
            match self.0.parse::<$kind>() {
                Ok(v) => visitor.$visit(v),
                Err(_) => Err(de::Error::invalid_type(de::Unexpected::Str(self.0), &visitor)),
            }
        })*
    };
}

impl<'de> de::Deserializer<'de> for Key<'de> {
    type Error = DeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_borrowed_str(self.0)
    }

    parsed! {
        deserialize_bool visit_bool bool;
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_i128 visit_i128 i128;
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_u128 visit_u128 u128;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        let name: StrDeserializer<'de, DeError> = self.0.into_deserializer();
        visitor.visit_enum(name)
    }

    serde::forward_to_deserialize_any! {
        f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier
        ignored_any
    }
}

struct Variant<'de> {
    name: &'de str,
    content: DocumentReader<'de>,
}

impl<'de> de::EnumAccess<'de> for Variant<'de> {
    type Error = DeError;
    type Variant = DocumentReader<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, DocumentReader<'de>), DeError> {
        let name: StrDeserializer<'de, DeError> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self.content))
    }
}

impl<'de> de::VariantAccess<'de> for DocumentReader<'de> {
    type Error = DeError;

    fn unit_variant(self) -> Result<(), DeError> {
        de::Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, DeError> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DeError> {
        de::Deserializer::deserialize_any(self, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, DeError> {
        de::Deserializer::deserialize_any(self, visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::{super::ser::to_document, *};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Unit,
        New(f64),
        Tuple(i8, String),
        Struct { a: Option<u32>, b: char },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(u64);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct State {
        small: i16,
        big: u128,
        negative: i128,
        float: f64,
        single: f32,
        text: String,
        list: Vec<Shape>,
        by_number: BTreeMap<u64, bool>,
        by_sign: BTreeMap<i32, u8>,
        wrapped: Wrapped,
        maybe: Option<Box<Wrapped>>,
        pair: (u8, Option<String>),
        any: serde_json::Value,
    }

    fn shape() -> impl Strategy<Value = Shape> {
        prop_oneof![
            Just(Shape::Unit),
            any::<f64>()
                .prop_filter("finite", |f| f.is_finite())
                .prop_map(Shape::New),
            (any::<i8>(), any::<String>()).prop_map(|(a, b)| Shape::Tuple(a, b)),
            (any::<Option<u32>>(), any::<char>()).prop_map(|(a, b)| Shape::Struct { a, b }),
        ]
    }

    prop_compose! {
        fn state()(
            small: i16, big: u128, negative: i128,
            float in any::<f64>().prop_filter("finite", |f| f.is_finite()),
            single in any::<f32>().prop_filter("finite", |f| f.is_finite()),
            text: String, list in prop::collection::vec(shape(), 0..5),
            by_number: BTreeMap<u64, bool>, by_sign: BTreeMap<i32, u8>,
            wrapped: u64, maybe: Option<u64>, pair: (u8, Option<String>), number: i64,
        ) -> State {
            State {
                small, big, negative, float, single, text, list, by_number, by_sign,
                wrapped: Wrapped(wrapped), maybe: maybe.map(|v| Box::new(Wrapped(v))), pair,
                any: serde_json::json!({"n": number, "l": [null, true, "x"]}),
            }
        }
    }

    proptest! {
        #[test]
        fn states_read_back_as_they_were(state in state()) {
            let document = to_document(&state).unwrap();
            prop_assert_eq!(&from_document::<State>(&document).unwrap(), &state);
            let text = super::super::json::to_string(&document);
            prop_assert_eq!(super::super::json::parse(&text).unwrap(), document);
        }
    }

    #[test]
    fn whole_numbers_read_back_however_a_store_writes_them() {
        for text in ["100", "1e2", "100.0", "1E+2", "0.1e3"] {
            assert_eq!(
                from_document::<u8>(&Document::Number(text.into())).unwrap(),
                100,
                "{text}"
            );
        }
        for text in ["1.5", "1e300", "-1", "256"] {
            assert!(from_document::<u8>(&Document::Number(text.into())).is_err(), "{text}");
        }
        let large: f64 = from_document(&Document::Number("100000000000000000000".into())).unwrap();
        assert_eq!(large.to_bits(), 1e20f64.to_bits());
    }

    #[test]
    fn errors_name_the_path() {
        #[derive(Debug, Serialize, Deserialize)]
        struct Outer {
            offers: BTreeMap<String, Vec<f64>>,
        }
        let bad = Outer {
            offers: BTreeMap::from([("sent".to_owned(), vec![1.0, f64::NAN])]),
        };
        let error = to_document(&bad).unwrap_err().to_string();
        assert!(error.starts_with("at `offers.sent[1]`: NaN"), "{error}");
        let good = super::super::json::parse(r#"{"offers":{"sent":["x"]}}"#).unwrap();
        let error = from_document::<Outer>(&good).unwrap_err().to_string();
        assert!(error.starts_with("at `offers.sent`: invalid type"), "{error}");
    }
}
