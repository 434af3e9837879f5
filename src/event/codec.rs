//! Between (event type, body) and a plain serde enum, without a detour through a JSON value.
//!
//! The pair is presented to serde as an externally tagged enum: the type is the variant's name,
//! the body its content. Upcasting runs first, on every path (I1 prefix: the route makes no
//! difference).

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{
    Deserialize, Serialize,
    de::{self, DeserializeOwned, IntoDeserializer as _},
    ser::{self, Impossible, SerializeMap as _},
};

use super::{Event, NewBody, RawEvent, Recorded};
use crate::document::discreet::{self, without_values};

/// Why an event's body and its type do not come together. Never a store's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The body does not decode as the event type.
    #[error("decode the event's body: {0}")]
    Decode(String),
    /// The event type is none that the enum knows, and it has no catch-all.
    #[error("find the event type `{0}` among the projection's events")]
    UnknownKind(String),
    /// The event has no type or no body that JSON can hold.
    #[error("store the event: {0}")]
    Unstorable(String),
}

/// Decodes an event, upcast first.
pub fn decode<E: Event>(mut event: RawEvent) -> Result<Recorded<E>, EventError> {
    E::upcast(&mut event);
    let decoded = E::deserialize(Tagged {
        kind: &event.kind,
        data: &event.data,
    })
    .map_err(|error| match error {
        CodecError::UnknownKind => EventError::UnknownKind(event.kind.to_string()),
        CodecError::Body(text) if !event.json => {
            EventError::Decode(format!("`{}` was not appended as JSON: {text}", event.kind))
        }
        CodecError::Body(text) => EventError::Decode(format!("`{}`: {text}", event.kind)),
    })?;
    Ok(Recorded {
        event: decoded,
        stream: event.stream,
        revision: event.revision,
        id: event.id,
        kind: event.kind,
        metadata: event.metadata,
        created: event.created,
    })
}

/// The type and body that an event is appended with.
pub fn encode<E: Event>(event: &E) -> Result<NewBody, EventError> {
    event.serialize(Capture).map_err(|error| match error {
        CodecError::UnknownKind => EventError::Unstorable("the event is no enum variant".into()),
        CodecError::Body(text) => EventError::Unstorable(text),
    })
}

/// An event of any type, for folds over event types that no enum can list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnyEvent<T = serde_json::Value> {
    /// Its event type.
    pub kind: String,
    /// Its body.
    pub body: T,
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Event for AnyEvent<T> {}

impl<T: Serialize> Serialize for AnyEvent<T> {
    fn serialize<S: ser::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(&self.kind, &self.body)?;
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for AnyEvent<T> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for One<T> {
            type Value = AnyEvent<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event type and its body")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (kind, body) = map.next_entry()?.ok_or_else(|| de::Error::custom("no event type"))?;
                Ok(AnyEvent { kind, body })
            }
        }
        deserializer.deserialize_map(One(std::marker::PhantomData))
    }
}

#[derive(Debug)]
enum CodecError {
    UnknownKind,
    Body(String),
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind => f.write_str("unknown event type"),
            Self::Body(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for CodecError {}

impl de::Error for CodecError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Body(without_values(&message.to_string()))
    }
    fn unknown_variant(_: &str, _: &'static [&'static str]) -> Self {
        Self::UnknownKind
    }
}

impl ser::Error for CodecError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Body(message.to_string())
    }
}

impl From<serde_json::Error> for CodecError {
    fn from(error: serde_json::Error) -> Self {
        Self::Body(discreet::told(&error))
    }
}

#[derive(Clone, Copy)]
struct Tagged<'de> {
    kind: &'de str,
    data: &'de [u8],
}

impl<'de> Tagged<'de> {
    /// An empty body is an object without members.
    fn body(self) -> &'de [u8] {
        if self.data.is_empty() { b"{}" } else { self.data }
    }

    fn parse<T>(
        self,
        read: impl FnOnce(&mut serde_json::Deserializer<serde_json::de::SliceRead<'de>>) -> Result<T, serde_json::Error>,
    ) -> Result<T, CodecError> {
        let mut json = serde_json::Deserializer::from_slice(self.body());
        let value = read(&mut json)?;
        json.end()?;
        Ok(value)
    }
}

impl<'de> de::Deserializer<'de> for Tagged<'de> {
    type Error = CodecError;

    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_map(Entry { event: self, stage: 0 })
    }

    fn deserialize_enum<V: de::Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        visitor.visit_enum(self)
    }

    fn deserialize_newtype_struct<V: de::Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> de::EnumAccess<'de> for Tagged<'de> {
    type Error = CodecError;
    type Variant = Self;

    fn variant_seed<V: de::DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), CodecError> {
        let name: de::value::StrDeserializer<'de, CodecError> = self.kind.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for Tagged<'de> {
    type Error = CodecError;

    /// Whatever the body holds: a variant that wants nothing of it (`#[serde(other)]` too) takes any.
    fn unit_variant(self) -> Result<(), CodecError> {
        Ok(())
    }

    fn newtype_variant_seed<T: de::DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, CodecError> {
        self.parse(|json| seed.deserialize(json))
    }

    fn tuple_variant<V: de::Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, CodecError> {
        self.parse(|json| de::Deserializer::deserialize_tuple(json, len, visitor))
    }

    fn struct_variant<V: de::Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        self.parse(|json| de::Deserializer::deserialize_struct(json, "", fields, visitor))
    }
}

/// The event as a map of one entry.
struct Entry<'de> {
    event: Tagged<'de>,
    stage: u8,
}

impl<'de> de::MapAccess<'de> for Entry<'de> {
    type Error = CodecError;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, CodecError> {
        if self.stage > 0 {
            return Ok(None);
        }
        self.stage = 1;
        let name: de::value::StrDeserializer<'de, CodecError> = self.event.kind.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, CodecError> {
        self.event.parse(|json| seed.deserialize(json))
    }
}

/// Captures a variant's name and content.
struct Capture;

fn body(kind: &str, data: Vec<u8>) -> NewBody {
    NewBody {
        kind: Arc::from(kind),
        data: Bytes::from(data),
    }
}

macro_rules! no_event {
    ($($method:ident($($arg:ty),*) -> $out:ty;)*) => {
        $(fn $method(self, $(_: $arg),*) -> Result<$out, CodecError> {
            Err(CodecError::UnknownKind)
        })*
    };
}

impl ser::Serializer for Capture {
    type Ok = NewBody;
    type Error = CodecError;
    type SerializeSeq = Impossible<NewBody, CodecError>;
    type SerializeTuple = Impossible<NewBody, CodecError>;
    type SerializeTupleStruct = Impossible<NewBody, CodecError>;
    type SerializeTupleVariant = Items;
    type SerializeMap = OneEntry;
    type SerializeStruct = Impossible<NewBody, CodecError>;
    type SerializeStructVariant = Members;

    no_event! {
        serialize_bool(bool) -> NewBody;
        serialize_i8(i8) -> NewBody;
        serialize_i16(i16) -> NewBody;
        serialize_i32(i32) -> NewBody;
        serialize_i64(i64) -> NewBody;
        serialize_u8(u8) -> NewBody;
        serialize_u16(u16) -> NewBody;
        serialize_u32(u32) -> NewBody;
        serialize_u64(u64) -> NewBody;
        serialize_f32(f32) -> NewBody;
        serialize_f64(f64) -> NewBody;
        serialize_char(char) -> NewBody;
        serialize_str(&str) -> NewBody;
        serialize_bytes(&[u8]) -> NewBody;
        serialize_none() -> NewBody;
        serialize_unit() -> NewBody;
        serialize_unit_struct(&'static str) -> NewBody;
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_struct(&'static str, usize) -> Self::SerializeStruct;
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<NewBody, CodecError> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<NewBody, CodecError> {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<NewBody, CodecError> {
        Ok(body(variant, b"{}".to_vec()))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<NewBody, CodecError> {
        Ok(body(variant, serde_json::to_vec(value)?))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items, CodecError> {
        Ok(Items {
            variant,
            items: Vec::new(),
        })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Members, CodecError> {
        Ok(Members {
            variant,
            text: b"{".to_vec(),
        })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<OneEntry, CodecError> {
        Ok(OneEntry::default())
    }
}

struct Items {
    variant: &'static str,
    items: Vec<Box<serde_json::value::RawValue>>,
}

impl ser::SerializeTupleVariant for Items {
    type Ok = NewBody;
    type Error = CodecError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        self.items.push(serde_json::value::to_raw_value(value)?);
        Ok(())
    }

    fn end(self) -> Result<NewBody, CodecError> {
        Ok(body(self.variant, serde_json::to_vec(&self.items)?))
    }
}

/// Members in the order of the struct's fields.
struct Members {
    variant: &'static str,
    text: Vec<u8>,
}

impl ser::SerializeStructVariant for Members {
    type Ok = NewBody;
    type Error = CodecError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), CodecError> {
        if self.text.len() > 1 {
            self.text.push(b',');
        }
        serde_json::to_writer(&mut self.text, key)?;
        self.text.push(b':');
        serde_json::to_writer(&mut self.text, value)?;
        Ok(())
    }

    fn end(mut self) -> Result<NewBody, CodecError> {
        self.text.push(b'}');
        Ok(body(self.variant, self.text))
    }
}

#[derive(Default)]
struct OneEntry {
    kind: Option<String>,
    done: Option<NewBody>,
}

impl ser::SerializeMap for OneEntry {
    type Ok = NewBody;
    type Error = CodecError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), CodecError> {
        let text = serde_json::to_string(key)?;
        self.kind = Some(serde_json::from_str(&text)?);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        let kind = self.kind.take().ok_or(CodecError::UnknownKind)?;
        if self.done.is_some() {
            return Err(CodecError::UnknownKind);
        }
        self.done = Some(body(&kind, serde_json::to_vec(value)?));
        Ok(())
    }

    fn end(self) -> Result<NewBody, CodecError> {
        self.done.ok_or(CodecError::UnknownKind)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Order {
        Placed {
            items: Vec<String>,
            total: u64,
        },
        Paid(u64),
        Moved(i32, i32),
        #[serde(rename = "order-shipped", alias = "Sent")]
        Shipped,
    }

    impl Event for Order {
        fn upcast(old: &mut RawEvent) {
            if &*old.kind == "Bought" {
                old.kind = "Paid".into();
            }
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Lenient {
        Known(u8),
        #[serde(other)]
        Other,
    }
    impl Event for Lenient {}

    fn raw(kind: &str, data: &str) -> RawEvent {
        RawEvent {
            stream: "order-1".into(),
            revision: 4,
            id: Uuid::nil(),
            kind: kind.into(),
            json: true,
            data: Bytes::copy_from_slice(data.as_bytes()),
            metadata: Bytes::new(),
            created: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn every_variant_reads_back_as_it_was_written() {
        for event in [
            Order::Placed {
                items: vec!["a\"b".into()],
                total: u64::MAX,
            },
            Order::Paid(7),
            Order::Moved(-1, 2),
            Order::Shipped,
        ] {
            let NewBody { kind, data } = encode(&event).unwrap();
            let text = String::from_utf8(data.to_vec()).unwrap();
            assert_eq!(
                decode::<Order>(raw(&kind, &text)).unwrap().event,
                event,
                "{kind} {text}"
            );
        }
        assert_eq!(
            &encode(&Order::Placed {
                items: vec![],
                total: 1
            })
            .unwrap()
            .data[..],
            br#"{"items":[],"total":1}"#
        );
        assert_eq!(&*encode(&Order::Shipped).unwrap().kind, "order-shipped");
    }

    #[test]
    fn unit_variants_take_any_body_and_aliases_count() {
        for body in ["", "{}", "null", r#"{"later":"field"}"#] {
            assert_eq!(decode::<Order>(raw("Sent", body)).unwrap().event, Order::Shipped);
        }
        assert_eq!(decode::<Lenient>(raw("Unheard", "[1")).unwrap().event, Lenient::Other);
        assert_eq!(decode::<Lenient>(raw("Known", "3")).unwrap().event, Lenient::Known(3));
    }

    #[test]
    fn older_events_are_brought_up_first() {
        let event = decode::<Order>(raw("Bought", "12")).unwrap();
        assert_eq!(
            (&event.event, &*event.kind, event.aggregate_id()),
            (&Order::Paid(12), "Paid", "1")
        );
    }

    #[test]
    fn errors_tell_an_unknown_type_from_a_broken_body() {
        assert_eq!(
            decode::<Order>(raw("Nope", "{}")),
            Err(EventError::UnknownKind("Nope".into()))
        );
        for (kind, body) in [
            ("Placed", "{"),
            ("Placed", r#"{"items":[]}"#),
            ("Paid", "7 7"),
            ("Moved", "[1]"),
        ] {
            let error = decode::<Order>(raw(kind, body)).unwrap_err();
            assert!(
                matches!(&error, EventError::Decode(text) if text.contains(kind)),
                "{error}"
            );
        }
        let mut binary = raw("Placed", "\u{1}");
        binary.json = false;
        assert!(
            decode::<Order>(binary)
                .unwrap_err()
                .to_string()
                .contains("not appended as JSON")
        );
    }

    #[test]
    fn any_event_keeps_type_and_body() {
        let event = AnyEvent {
            kind: "W_Nabellen offertes".to_owned(),
            body: serde_json::json!({"at": 1}),
        };
        let NewBody { kind, data } = encode(&event).unwrap();
        let text = String::from_utf8(data.to_vec()).unwrap();
        assert_eq!(decode::<AnyEvent>(raw(&kind, &text)).unwrap().event, event);
    }
}
