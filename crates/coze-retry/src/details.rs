//! The delay that a gRPC status asks for in its details: `google.rpc.RetryInfo` (google/rpc/status.proto and `error_details.proto`), of
//! whose messages only these fields are read.

use std::time::Duration;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName};

const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// Details longer than this are not read: servers bound all headers together by as much.
const MAX: usize = 8 * 1024;
/// A binary header comes with or without padding (gRPC over HTTP/2, `Binary-Header`).
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How long the server wants to be left alone, if it says so and is understood.
pub(crate) fn retry_delay(fields: &HeaderMap) -> Option<Duration> {
    let value = fields.get(DETAILS).filter(|value| value.len() <= MAX)?;
    let status = BASE64.decode(value).ok()?;
    let details = Fields(&status).filter_map(|(number, value)| (number == 3).then(|| value.message()).flatten());
    details.filter_map(delay).next()
}

/// The delay in an `Any` that is a `RetryInfo`.
fn delay(any: &[u8]) -> Option<Duration> {
    let url = last(any, 1)?.message()?;
    if url.rsplit(|byte| *byte == b'/').next() != Some(b"google.rpc.RetryInfo") {
        return None;
    }
    let delay = last(last(any, 2)?.message()?, 1)?.message()?;
    let number = |number| last(delay, number).map_or(Some(0), |value| value.number());
    // A negative number is one beyond these.
    let seconds = number(1).filter(|seconds| *seconds <= i64::MAX.unsigned_abs())?;
    let nanos = u32::try_from(number(2)?).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos))
}

/// Of a field that is there more than once the last one counts (protobuf, encoding).
fn last(message: &[u8], number: u64) -> Option<Value<'_>> {
    Fields(message).filter_map(|(found, value)| (found == number).then_some(value)).last()
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Message(&'a [u8]),
    /// Eight or four bytes, of which none are read.
    Fixed,
}

impl<'a> Value<'a> {
    fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }

    fn message(self) -> Option<&'a [u8]> {
        match self {
            Self::Message(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// The fields of a message by their numbers, up to the first that makes no sense.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.bytes(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Message(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Seven bits a byte, the lowest first, as long as the eighth bit says that more follow.
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(status: &[u8]) -> Option<Duration> {
        let value = HeaderValue::try_from(BASE64.encode(status)).expect("visible");
        retry_delay(&[(DETAILS, value)].into_iter().collect())
    }

    /// A field that is a message, of less than 128 bytes.
    fn field(number: u8, message: &[u8]) -> Vec<u8> {
        let length = u8::try_from(message.len()).expect("short");
        [&[number << 3 | 2, length], message].concat()
    }

    fn detail(url: &str, value: &[u8]) -> Vec<u8> {
        field(3, &[field(1, url.as_bytes()), field(2, value)].concat())
    }

    /// A status of code 14 with this as the duration of its `RetryInfo`.
    fn info(duration: &[u8]) -> Vec<u8> {
        [vec![8, 14], detail("type.googleapis.com/google.rpc.RetryInfo", &field(1, duration))].concat()
    }

    #[test]
    fn a_delay_is_read_in_seconds_and_nanoseconds() {
        assert_eq!(read(&info(&[8, 3, 16, 0x80, 0xca, 0xb5, 0xee, 1])), Some(Duration::from_millis(3500)));
        assert_eq!(read(&info(&[])), Some(Duration::ZERO));
        assert_eq!(read(&info(&[8, 1, 8, 2])), Some(Duration::from_secs(2)), "the last one counts");
        let behind = [detail("type.googleapis.com/google.rpc.ErrorInfo", &field(1, b"BUSY")), info(&[8, 7])].concat();
        assert_eq!(read(&behind), Some(Duration::from_secs(7)));
        let padded = HeaderValue::from_str(BASE64.encode(info(&[8, 5])).trim_end_matches('=')).expect("it");
        assert_eq!(retry_delay(&[(DETAILS, padded)].into_iter().collect()), Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_is_negative_too_large_or_something_else_is_none() {
        let minus_one = [0xff; 9].iter().copied().chain([1]).collect::<Vec<_>>();
        assert_eq!(read(&info(&[&[8], &minus_one[..]].concat())), None, "seconds");
        assert_eq!(read(&info(&[&[16], &minus_one[..]].concat())), None, "nanoseconds");
        assert_eq!(read(&info(&[16, 0x80, 0x94, 0xeb, 0xdc, 3])), None, "a second in nanoseconds");
        assert_eq!(read(&info(&[8, 0xff])), Some(Duration::ZERO), "a number that does not end is not there");
        assert_eq!(read(&detail("type.googleapis.com/google.rpc.RetryInfo2", &field(1, &[8, 3]))), None);
        assert_eq!(read(&detail("type.googleapis.com/google.rpc.RetryInfo", &[])), None, "without a delay");
        assert_eq!(read(&[]), None);
        assert_eq!(retry_delay(&HeaderMap::new()), None);
        let mut longest = info(&[8, 3]);
        longest.resize(MAX / 4 * 3, 0);
        assert!(read(&longest).is_some());
        longest.push(0);
        assert_eq!(read(&longest), None, "longer than is read");
        for garbage in ["%", "====", "a", ""] {
            assert_eq!(retry_delay(&[(DETAILS, HeaderValue::from_static(garbage))].into_iter().collect()), None);
        }
    }

    proptest! {
        /// Whatever is sent, it ends, and in a duration that can be waited for or in none.
        #[test]
        fn garbage_is_read_to_its_end(garbage in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..60) {
            let _ = read(&garbage);
            let mut cut_off = info(&[8, 3]);
            cut_off.truncate(cut);
            prop_assert!(read(&cut_off).is_none_or(|delay| delay <= Duration::from_secs(3)));
        }
    }
}
