use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coze_core::Error;
use serde::de::{Error as _, IgnoredAny, MapAccess};

use super::{
    key::Algorithm,
    object::{self, Members, Text},
};
use crate::verify::malformed;

/// The three parts of a compact JWS (RFC 7515 §7.1), decoded. Nothing is verified yet.
pub(super) struct Compact<'t> {
    /// What the signature is of.
    pub(super) signed: &'t [u8],
    decoded: Vec<u8>,
    header: usize,
    payload: usize,
}

impl<'t> Compact<'t> {
    /// Takes only what RFC 7515 §2 calls base64url: no padding, no white space, no bits left over.
    pub(super) fn parse(token: &'t [u8]) -> Result<Self, Error> {
        let mut parts = token.split(|byte| *byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("the token does not have three parts".to_owned()));
        };
        let mut decoded = Vec::with_capacity(token.len());
        let mut decode = |part: &[u8]| match URL_SAFE_NO_PAD.decode_vec(part, &mut decoded) {
            Ok(()) => Ok(decoded.len()),
            Err(_) => Err(malformed("a part of the token is not base64url".to_owned())),
        };
        let signed = &token[..header.len() + 1 + payload.len()];
        let (header, payload) = (decode(header)?, decode(payload)?);
        decode(signature)?;
        Ok(Self { signed, decoded, header, payload })
    }

    pub(super) fn header(&self) -> Result<Header<'_>, Error> {
        let mut header = Header::default();
        match object::read(&self.decoded[..self.header], &mut header) {
            Ok(()) if header.alg.is_none() => Err(malformed("the header of the token names no algorithm".to_owned())),
            Ok(()) => Ok(header),
            Err(_) => Err(malformed("the header of the token is not one we can take".to_owned())),
        }
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.decoded[self.header..self.payload]
    }

    pub(super) fn signature(&self) -> &[u8] {
        &self.decoded[self.payload..]
    }
}

/// What we read of a header.
#[derive(Default)]
pub(super) struct Header<'a> {
    alg: Option<Cow<'a, str>>,
    pub(super) kid: Option<Cow<'a, str>>,
    pub(super) typ: Option<Cow<'a, str>>,
}

impl Header<'_> {
    /// `None` if it is none of ours, such as `none`.
    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        Algorithm::named(self.alg.as_deref()?)
    }
}

impl<'de> Members<'de> for Header<'de> {
    fn member<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "alg" => self.alg = Some(map.next_value::<Text<'de>>()?.0),
            "kid" => self.kid = Some(map.next_value::<Text<'de>>()?.0),
            "typ" => self.typ = Some(map.next_value::<Text<'de>>()?.0),
            // We know no extension that a token could insist on (RFC 7515 §4.1.11). Another encoding of the payload is one also
            // where it does not insist: it would make one text of what was signed as another one (RFC 7797 §8).
            "crit" => return Err(A::Error::custom("not accepted")),
            "b64" if !map.next_value::<bool>()? => return Err(A::Error::custom("not accepted")),
            "b64" => {}
            // Also what a token says of its key: `jku`, `jwk`, `x5u`, `x5c` (§4).
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}
