//! Whole numbers as JSON has them: `60.0` is one too, and what some languages write.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// For fields that may be left out or null.
pub(crate) fn option<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i64>,
{
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    read(&number).map(Some).ok_or_else(|| D::Error::custom(format_args!("{number} is out of range")))
}

fn read<T: TryFrom<i64>>(number: &serde_json::Number) -> Option<T> {
    // Up to here every whole number is one of a float's values, so nothing is rounded.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = number.as_i64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= EXACT)?;
        #[allow(clippy::cast_possible_truncation, reason = "it is whole and small")]
        Some(float as i64)
    })?;
    T::try_from(whole).ok()
}

#[cfg(test)]
mod tests {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default, deserialize_with = "super::option")]
        n: Option<u8>,
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let read = |text: &str| serde_json::from_str::<Body>(text).map(|body| body.n).map_err(|_| ());
        assert_eq!(read(r#"{"n": 60}"#), Ok(Some(60)));
        assert_eq!(read(r#"{"n": 60.0}"#), Ok(Some(60)));
        assert_eq!(read(r#"{"n": 6e1}"#), Ok(Some(60)));
        assert_eq!((read("{}"), read(r#"{"n": null}"#)), (Ok(None), Ok(None)));
        for wrong in ["60.5", "256", "-1", "256.0", "1e300", "\"60\"", "[]", "18446744073709551615"] {
            assert_eq!(read(&format!(r#"{{"n": {wrong}}}"#)), Err(()), "{wrong}");
        }
    }
}
