//! Which floats of a state are whole numbers, found without a copy of it.
//!
//! To DynamoDB 1.0 and 1 are one number. A typed field reads it back as what it is; an untyped one
//! (`serde_json::Value`) gets an integer where a float was. Nothing else changes on the way. What a
//! type's fields are is not to be seen from outside, but can be learned: where a whole float is still
//! one after it was read back, the field is typed.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::ser::{self, Serialize};

/// Typed fields that are remembered of one type of states: more are read back with each event.
const FIELDS: usize = 16;

/// From here on a whole float may be one also in an untyped field, which then proves nothing.
const INTEGERS: f64 = 9_007_199_254_740_992.0;

/// Fields of one type of states that are floats whatever they hold: places in the state, by hash, 0 for
/// none. What stands below a map has no place, for its keys may be of either kind.
#[derive(Debug, Default)]
pub(crate) struct TypedFloats([AtomicU64; FIELDS]);

impl TypedFloats {
    /// Whether reading the state back might change it: a float without a fraction is in it where no
    /// typed field is known.
    pub(crate) fn may_change<T: Serialize + ?Sized>(&self, state: &T) -> bool {
        any_whole_float(state, &|place, value| {
            !(is_plain(value) && place.is_some_and(|at| self.has(at)))
        })
    }

    /// Takes it from a state that was read back which of its fields are typed.
    pub(crate) fn learn<T: Serialize + ?Sized>(&self, state: &T) {
        any_whole_float(state, &|place, value| {
            if let Some(place) = place.filter(|at| is_plain(value) && !self.has(*at)) {
                self.add(place);
            }
            false
        });
    }

    fn has(&self, place: u64) -> bool {
        self.0.iter().any(|known| known.load(Ordering::Relaxed) == place)
    }

    fn add(&self, place: u64) {
        for slot in &self.0 {
            let put = slot.compare_exchange(0, place, Ordering::Relaxed, Ordering::Relaxed);
            if put.is_ok() {
                break;
            }
        }
    }
}

/// Whether an untyped field would come back with an integer, and a typed one unchanged: a negative zero
/// loses its sign.
fn is_plain(value: f64) -> bool {
    value.abs() < INTEGERS && (value != 0.0 || value.is_sign_positive())
}

/// Whether `meets` is true for any number of `state` that is a float without a fraction, given its place.
fn any_whole_float<T, F>(state: &T, meets: &F) -> bool
where
    T: Serialize + ?Sized,
    F: Fn(Option<u64>, f64) -> bool,
{
    let walk = Walk {
        meets,
        place: Some(0xcbf2_9ce4_8422_2325),
        index: 0,
    };
    matches!(state.serialize(walk), Err(Met::WholeFloat))
}

struct Walk<'a, F> {
    meets: &'a F,
    place: Option<u64>,
    /// The next element's, in a tuple.
    index: u64,
}

impl<F> Walk<'_, F> {
    fn here(&self) -> Self {
        Self { ..*self }
    }

    /// One step down. `by`: what tells it from its siblings.
    fn down(&self, by: u64) -> Self {
        let place = self
            .place
            .map(|at| (at ^ by).wrapping_mul(0x0100_0000_01b3).rotate_left(23) | 1);
        Self { place, ..*self }
    }

    /// A name of the type's: it stands where it stands for as long as the process lives.
    fn named(&self, name: &'static str) -> Self {
        self.down((name.as_ptr() as u64).rotate_left(7) ^ name.len() as u64)
    }

    fn unplaced(&self) -> Self {
        Self { place: None, ..*self }
    }

    fn next(&mut self) -> Self {
        self.index += 1;
        self.down(self.index)
    }
}

/// What ended the walk.
#[derive(Debug)]
enum Met {
    WholeFloat,
    /// The state cannot be written at all; whoever writes it says why.
    Error,
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the walk through a state ended early")
    }
}

impl std::error::Error for Met {}

impl ser::Error for Met {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Error
    }
}

macro_rules! nothing {
    ($($method:ident: $type:ty),+ $(,)?) => {
        $(fn $method(self, _: $type) -> Result<(), Met> {
            Ok(())
        })+
    };
}

/// Tells the elements of a list from the list: they are all of one type.
const ELEMENT: u64 = u64::MAX;

impl<F: Fn(Option<u64>, f64) -> bool> ser::Serializer for Walk<'_, F> {
    type Ok = ();
    type Error = Met;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    nothing! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32,
        serialize_i64: i64, serialize_i128: i128, serialize_u8: u8, serialize_u16: u16,
        serialize_u32: u32, serialize_u64: u64, serialize_u128: u128, serialize_char: char,
        serialize_str: &str, serialize_bytes: &[u8], serialize_unit_struct: &'static str,
    }

    fn serialize_f32(self, v: f32) -> Result<(), Met> {
        self.serialize_f64(f64::from(v))
    }
    fn serialize_f64(self, v: f64) -> Result<(), Met> {
        if v.fract() == 0.0 && (self.meets)(self.place, v) {
            Err(Met::WholeFloat)
        } else {
            Ok(())
        }
    }
    fn serialize_none(self) -> Result<(), Met> {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Met> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Met> {
        Ok(())
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Met> {
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Met> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Met> {
        value.serialize(self.named(variant))
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Met> {
        Ok(self.down(ELEMENT))
    }
    fn serialize_tuple(self, _: usize) -> Result<Self, Met> {
        Ok(self)
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Met> {
        Ok(self)
    }
    fn serialize_tuple_variant(self, _: &'static str, _: u32, variant: &'static str, _: usize) -> Result<Self, Met> {
        Ok(self.named(variant))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self, Met> {
        Ok(self.unplaced())
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Met> {
        Ok(self)
    }
    fn serialize_struct_variant(self, _: &'static str, _: u32, variant: &'static str, _: usize) -> Result<Self, Met> {
        Ok(self.named(variant))
    }
}

impl<F: Fn(Option<u64>, f64) -> bool> ser::SerializeMap for Walk<'_, F> {
    type Ok = ();
    type Error = Met;

    /// Keys are text when they are stored.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), Met> {
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Met> {
        value.serialize(self.here())
    }
    fn end(self) -> Result<(), Met> {
        Ok(())
    }
}

macro_rules! walks {
    ($($trait:ident: $method:ident($($name:ident)?) by $down:ident),+ $(,)?) => {
        $(impl<F: Fn(Option<u64>, f64) -> bool> ser::$trait for Walk<'_, F> {
            type Ok = ();
            type Error = Met;
            fn $method<T: Serialize + ?Sized>(&mut self, $($name: &'static str,)? value: &T) -> Result<(), Met> {
                value.serialize(self.$down($($name)?))
            }
            fn end(self) -> Result<(), Met> {
                Ok(())
            }
        })+
    };
}

walks! {
    SerializeSeq: serialize_element() by here,
    SerializeTuple: serialize_element() by next,
    SerializeTupleStruct: serialize_field() by next,
    SerializeTupleVariant: serialize_field() by next,
    SerializeStruct: serialize_field(name) by named,
    SerializeStructVariant: serialize_field(name) by named,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    #[derive(serde::Serialize)]
    enum Kind {
        Typed(f64),
        Untyped { value: Value },
    }

    #[derive(serde::Serialize)]
    struct State {
        typed: Option<f64>,
        untyped: Value,
        pair: (f64, Value),
        list: Vec<f64>,
        kinds: Vec<Kind>,
        map: BTreeMap<&'static str, f64>,
    }

    fn state(untyped: Value) -> State {
        State {
            typed: Some(1.0),
            untyped,
            pair: (2.0, json!(2)),
            list: vec![3.0, 0.0],
            kinds: vec![Kind::Typed(4.0), Kind::Untyped { value: json!(4) }],
            map: BTreeMap::new(),
        }
    }

    #[test]
    fn what_stays_a_float_is_typed_and_is_not_read_back_again() {
        let known = TypedFloats::default();
        let as_read_back = state(json!(1));
        assert!(known.may_change(&as_read_back), "nothing is known");
        known.learn(&as_read_back);
        assert!(!known.may_change(&as_read_back));
        // The same places with other values, and in each of the others something whole.
        let others = |change: fn(&mut State)| {
            let mut state = state(json!(1));
            change(&mut state);
            known.may_change(&state)
        };
        assert!(!others(|state| state.typed = Some(17.0)));
        assert!(!others(|state| state.list.push(9.0)));
        assert!(!others(|state| state.untyped = json!({"a": [1.5, 2]})));
        assert!(others(|state| state.untyped = json!(1.0)));
        assert!(others(|state| state.untyped = json!([1.0])));
        assert!(others(|state| state.untyped = json!({"a": 1.0})));
        assert!(others(|state| state.pair.1 = json!(1.0)));
        assert!(others(|state| state.kinds[1] = Kind::Untyped { value: json!(1.0) }));
        assert!(
            others(|state| state.map = BTreeMap::from([("a", 1.0)])),
            "a map's keys may be of either kind"
        );
    }

    #[test]
    fn what_an_untyped_field_keeps_as_a_float_proves_nothing() {
        let known = TypedFloats::default();
        known.learn(&state(json!(1e200)));
        assert!(known.may_change(&state(json!(1.0))));
        // A sign that is lost on the way is lost in a typed field, too.
        let mut negative = state(json!(1));
        assert!(!known.may_change(&negative));
        negative.typed = Some(-0.0);
        assert!(known.may_change(&negative));
    }

    #[test]
    fn more_fields_than_are_remembered_are_read_back() {
        let known = TypedFloats::default();
        (1..=FIELDS as u64 + 3).for_each(|place| known.add(place));
        known.learn(&state(json!(1)));
        assert!(known.may_change(&state(json!(1))));
        assert!(known.has(FIELDS as u64) && !known.has(FIELDS as u64 + 1));
    }
}
