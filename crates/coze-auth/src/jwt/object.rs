use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};

/// The most members an object may have: an answer to who sends thousands of them.
const MAX_MEMBERS: usize = 64;

/// Takes the members of a JSON object, one after the other.
pub(super) trait Members<'de> {
    /// Takes the value of the member `name` from `map`, whether it is wanted or not.
    fn member<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Hands the members of an object to `members`. Refuses what is no object, and an object that names a member twice
/// (RFC 8725 leaves it open who of two readers is right) or has more than [`MAX_MEMBERS`]. All of it is UTF-8, also what
/// nobody looks at (RFC 7515 §5.2).
pub(super) fn read<'de, M: Members<'de>>(json: &'de [u8], members: &mut M) -> Result<(), serde_json::Error> {
    let text = str::from_utf8(json).map_err(serde_json::Error::custom)?;
    let mut json = serde_json::Deserializer::from_str(text);
    Object(members).deserialize(&mut json)?;
    json.end()
}

struct Object<'m, M>(&'m mut M);

impl<'de, M: Members<'de>> DeserializeSeed<'de> for Object<'_, M> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, M: Members<'de>> Visitor<'de> for Object<'_, M> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = Vec::with_capacity(16);
        while let Some(Text(name)) = map.next_key()? {
            if names.len() == MAX_MEMBERS || names.contains(&name) {
                return Err(A::Error::custom("a member is given twice, or there are too many"));
            }
            self.0.member(&name, &mut map)?;
            names.push(name);
        }
        Ok(())
    }
}

/// A string, borrowed where it has no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// A string, or a list of strings.
pub(super) enum Texts<'a> {
    One(Cow<'a, str>),
    Many(Vec<Cow<'a, str>>),
}

impl Texts<'_> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        let (one, many) = match self {
            Texts::One(text) => (Some(text), [].as_slice()),
            Texts::Many(texts) => (None, texts.as_slice()),
        };
        one.into_iter().chain(many).map(Cow::as_ref)
    }
}

impl<'de> Deserialize<'de> for Texts<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Texts<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Texts<'de>, E> {
                Ok(Texts::One(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Texts<'de>, E> {
                Ok(Texts::One(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts<'de>, A::Error> {
                let mut texts = Vec::new();
                while let Some(Text(text)) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Texts::Many(texts))
            }
        }

        json.deserialize_any(OneOrMany)
    }
}
