//! Reads the platform's envelope from the head of a body (coze-platform.md §2.1), and nothing else of it.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::Rest;

/// What was understood so far. Of a name given twice the first one counts, so that what was decided stays decided.
#[derive(Debug, Default)]
pub(crate) struct Envelope {
    pub(crate) code: Option<i64>,
    pub(crate) msg: Option<String>,
    pub(crate) logid: Option<String>,
    /// What an OAuth endpoint calls the error and says about it (§1.8).
    pub(crate) oauth: Option<String>,
    pub(crate) description: Option<String>,
    /// Is `data.status` "failed"?
    failed: Option<bool>,
    /// `data.last_error`: its code, 0 where it has none, and its message.
    last_error: Option<(i64, String)>,
    data_ended: bool,
    /// May more of the body still matter?
    pub(crate) open: bool,
}

impl Envelope {
    /// Reads what a body begins with. Broken and foreign JSON is an envelope that says nothing.
    pub(crate) fn read(mut start: &[u8], rest: Rest) -> Self {
        if rest != Rest::Nothing {
            // The digits that follow may change a number: it is not there before its end is.
            while let [head @ .., b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'] = start {
                start = head;
            }
        }
        // Without a copy, unless the bytes are not UTF-8: then their message is legible at least.
        let text = String::from_utf8_lossy(start);
        let mut found = Self::default();
        let walk = Walk { at: At::Top, found: &mut found };
        let read = walk.deserialize(&mut serde_json::Deserializer::from_str(&text));
        let unfinished = rest == Rest::Coming && read.is_err_and(|error| error.is_eof());
        let fine = found.code == Some(0) && (found.data_ended || found.failed == Some(false));
        found.open = unfinished && !fine;
        found
    }

    /// The error of a chat that failed, which comes in an envelope of code 0 (§2.2).
    pub(crate) fn failed_chat(&self) -> Option<(i64, &str)> {
        let (code, msg) = self.last_error.as_ref()?;
        (self.code == Some(0) && self.failed == Some(true)).then_some((*code, msg))
    }
}

/// The places of an envelope that matter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Top,
    Code,
    Msg,
    Detail,
    Logid,
    Oauth,
    Description,
    Data,
    Status,
    LastError,
    LastCode,
    LastMsg,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Name {
    Code,
    Msg,
    Detail,
    Logid,
    Error,
    ErrorCode,
    ErrorMessage,
    ErrorDescription,
    Data,
    Status,
    LastError,
    #[serde(other)]
    Other,
}

/// One step of the way through the JSON. What is found is kept even if the JSON breaks off later.
struct Walk<'a> {
    at: At,
    found: &'a mut Envelope,
}

impl Walk<'_> {
    fn child(&self, name: &Name) -> Option<At> {
        match (self.at, name) {
            (At::Top, Name::Code) => Some(At::Code),
            (At::Top, Name::Msg) => Some(At::Msg),
            (At::Top, Name::Detail) => Some(At::Detail),
            (At::Top, Name::Error | Name::ErrorCode) => Some(At::Oauth),
            (At::Top, Name::ErrorMessage | Name::ErrorDescription) => Some(At::Description),
            (At::Top, Name::Data) if !self.found.data_ended => Some(At::Data),
            (At::Detail, Name::Logid) => Some(At::Logid),
            (At::Data, Name::Status) => Some(At::Status),
            (At::Data, Name::LastError) if self.found.last_error.is_none() => Some(At::LastError),
            (At::LastError, Name::Code) => Some(At::LastCode),
            (At::LastError, Name::Msg) => Some(At::LastMsg),
            _ => None,
        }
    }

    fn number(self, number: i64) {
        match self.at {
            At::Code => _ = self.found.code.get_or_insert(number),
            At::LastCode => self.found.last_error.get_or_insert_default().0 = number,
            _ => {}
        }
    }

    fn text(self, text: &str) {
        match self.at {
            At::Msg => keep(&mut self.found.msg, text),
            At::Logid => keep(&mut self.found.logid, text),
            At::Oauth => keep(&mut self.found.oauth, text),
            At::Description => keep(&mut self.found.description, text),
            At::LastMsg => self.found.last_error.get_or_insert_default().1 = text.to_owned(),
            At::Status => _ = self.found.failed.get_or_insert(text == "failed"),
            // A code may be a numeric string.
            At::Code | At::LastCode => {
                if let Ok(number) = text.trim().parse() {
                    self.number(number);
                }
            }
            At::Top | At::Detail | At::Data | At::LastError => {}
        }
    }
}

fn keep(slot: &mut Option<String>, text: &str) {
    slot.get_or_insert_with(|| text.to_owned());
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { at, found } = self;
        deserializer.deserialize_any(Walk { at, found })?;
        found.data_ended |= at == At::Data;
        Ok(())
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.number(number);
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        if let Ok(number) = i64::try_from(number) {
            self.number(number);
        }
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        // Some encoders write 4000.0; Rust prints it as 4000, and what is not whole as what is no integer.
        if let Ok(number) = number.to_string().parse() {
            self.number(number);
        }
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.text(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        // A list has no status: no need to wait for its end.
        self.found.data_ended |= self.at == At::Data;
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        if self.at == At::LastError {
            self.found.last_error = Some(<_>::default());
        }
        while let Some(name) = members.next_key()? {
            match self.child(&name) {
                Some(at) => members.next_value_seed(Walk { at, found: &mut *self.found })?,
                None => _ = members.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }
}
