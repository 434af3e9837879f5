//! Numbers as decimal text: what DynamoDB's number type holds exactly, and in which form.
//!
//! Invariant: I1 prefix: a number is stored as it is or not as a number at all.

use std::{borrow::Cow, fmt::Write};

use crate::document::Document;

/// DynamoDB keeps 38 significant digits and refuses more ("Supported data types", Number).
const MAX_DIGITS: usize = 38;
/// The greatest power of ten before the decimal point: 9.99…E+125.
const MAX_EXPONENT: i64 = 125;
/// The least: 1E-130.
const MIN_EXPONENT: i64 = -130;
/// Beyond this many places a number is written with an exponent; below it plainly, as DynamoDB
/// itself gives it back, so that a state reads back as the same text.
const PLAIN_PLACES: i64 = 40;

/// The numbers of a state as they come back from the table: one text for each. Those that its
/// number type does not hold stay as they are; a state with one of them is stored as JSON.
pub(crate) fn as_read_back(document: &mut Document) {
    match document {
        Document::Number(text) => {
            if let Some(number) = Decimal::parse(text).filter(Decimal::fits) {
                let canonical = number.canonical();
                if *canonical != **text {
                    *text = canonical.into();
                }
            }
        }
        Document::List(items) => items.iter_mut().for_each(as_read_back),
        Document::Map(members) => members.values_mut().for_each(as_read_back),
        Document::Null | Document::Bool(_) | Document::String(_) => {}
    }
}

/// A decimal number: `digits[0].digits[1..] × 10^exponent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decimal<'a> {
    negative: bool,
    /// Significant digits, without zeros at either end; empty for zero.
    digits: Cow<'a, str>,
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// Reads decimal text (`-12.5e3`); `None` when it is none.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, power) = match rest.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, power.parse::<i64>().ok()?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let joined: Cow<'a, str> = if fraction.is_empty() {
            Cow::Borrowed(whole)
        } else {
            Cow::Owned(format!("{whole}{fraction}"))
        };
        let leading = joined.len() - joined.trim_start_matches('0').len();
        let digits = match joined {
            Cow::Borrowed(text) => Cow::Borrowed(text.trim_matches('0')),
            Cow::Owned(text) => Cow::Owned(text.trim_matches('0').to_owned()),
        };
        let exponent = if digits.is_empty() {
            0
        } else {
            power.checked_add(whole.len() as i64)?.checked_sub(leading as i64 + 1)?
        };
        Some(Self {
            negative,
            digits,
            exponent,
        })
    }

    /// Whether DynamoDB's number type holds it exactly. Negative zero is none of its numbers.
    pub(crate) fn fits(&self) -> bool {
        if self.digits.is_empty() {
            return !self.negative;
        }
        self.digits.len() <= MAX_DIGITS && (MIN_EXPONENT..=MAX_EXPONENT).contains(&self.exponent)
    }

    /// Bytes by DynamoDB's rules, never fewer: one for each two digits, one more, and one for a
    /// minus sign; digits may straddle a pair's border.
    pub(crate) fn size(&self) -> usize {
        self.digits.len() / 2 + 2 + usize::from(self.negative)
    }

    /// The text that is stored: JSON by form, one text for each number.
    pub(crate) fn canonical(&self) -> String {
        let mut text = String::with_capacity(self.digits.len() + 8);
        if self.negative {
            text.push('-');
        }
        let digits = &*self.digits;
        let count = digits.len() as i64;
        if count == 0 {
            text.push('0');
        } else if (0..PLAIN_PLACES).contains(&self.exponent) {
            let whole = self.exponent + 1;
            if count <= whole {
                text.push_str(digits);
                text.extend(std::iter::repeat_n('0', (whole - count) as usize));
            } else {
                let (before, after) = digits.split_at(whole as usize);
                text.push_str(before);
                text.push('.');
                text.push_str(after);
            }
        } else if (-PLAIN_PLACES..0).contains(&self.exponent) {
            text.push_str("0.");
            text.extend(std::iter::repeat_n('0', (-self.exponent - 1) as usize));
            text.push_str(digits);
        } else {
            let (first, rest) = digits.split_at(1);
            text.push_str(first);
            if !rest.is_empty() {
                text.push('.');
                text.push_str(rest);
            }
            // Writing to a `String` cannot fail.
            let _ = write!(text, "e{}", self.exponent);
        }
        text
    }
}

/// Whether `text` is already the one text of its number: a plain integer, the common case.
pub(crate) fn is_plain_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    match digits.as_bytes() {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.len() < MAX_DIGITS && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        Decimal::parse(text).unwrap().canonical()
    }

    #[test]
    fn one_text_for_each_number() {
        for (text, same) in [
            ("0", "0"),
            ("0.0", "0"),
            ("0e9", "0"),
            ("1.50", "1.5"),
            ("1.0", "1"),
            ("100", "100"),
            ("1E2", "100"),
            ("-12.5e1", "-125"),
            ("0.00120", "0.0012"),
            ("12e-4", "0.0012"),
            ("007", "7"),
            ("+3", "3"),
            ("1e125", "1e125"),
            ("1.25e-130", "1.25e-130"),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            assert_eq!(canonical(text), same, "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "",
            "-",
            ".",
            "NaN",
            "inf",
            "1e",
            "1e400000000000000000000",
            "1x",
            "1.2.3",
            "--1",
        ] {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_what_dynamodb_holds_exactly_fits() {
        let fits = |text: &str| Decimal::parse(text).unwrap().fits();
        let most = "9".repeat(38);
        for text in [
            "0",
            "-1",
            "1e125",
            "1e-130",
            "18446744073709551615",
            &most,
            "1.5000000000000000000000000000000000000000000",
        ] {
            assert!(fits(text), "{text}");
        }
        let one_more = "1".repeat(39);
        for text in ["-0", "-0.0", "1e126", "1e-131", "1e300", "5e-324", &one_more] {
            assert!(!fits(text), "{text}");
        }
        // 39 digits of which the last is a zero are 38 significant ones.
        assert!(fits(&format!("{}0", "1".repeat(38))));
    }

    proptest! {
        #[test]
        fn a_canonical_text_stays_as_it_is(mantissa in any::<i128>(), power in -120i32..80) {
            let once = canonical(&format!("{mantissa}e{power}"));
            prop_assert_eq!(&canonical(&once), &once);
            prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&once).is_ok());
            if is_plain_integer(&once) {
                prop_assert!(!once.contains(['e', '.']));
            }
        }

        #[test]
        fn integers_keep_their_digits(value in any::<i64>()) {
            prop_assert_eq!(canonical(&value.to_string()), value.to_string());
            prop_assert!(is_plain_integer(&value.to_string()));
        }

        #[test]
        fn floats_keep_their_value(value in any::<f64>().prop_filter("finite", |v| v.is_finite())) {
            let text = format!("{value:e}");
            prop_assert_eq!(canonical(&text).parse::<f64>().unwrap().to_bits(), value.to_bits());
        }
    }
}
