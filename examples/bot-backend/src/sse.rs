//! A parser for `text/event-stream` (WHATWG HTML, §9.2), over chunks that may end anywhere.
//!
//! Where the platform differs from the standard, the platform is right: an event without data counts when it has a name,
//! because the self-hosted edition ends its streams with one (coze-platform.md §2.5).

use bytes::{Buf, Bytes};
use coze_core::{Error, Kind, Retry};

/// Bytes of one line. A finished message repeats the whole answer on one line.
pub(crate) const MAX_LINE: usize = 1 << 20;
/// Bytes of all data lines of one event.
pub(crate) const MAX_DATA: usize = 2 << 20;

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// What the `event` field said; empty without one.
    pub(crate) name: String,
    /// The `data` fields, joined by line feeds.
    pub(crate) data: String,
}

/// What is known of the event that has begun.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    name: String,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return, so that a line feed now belongs to it.
    after_return: bool,
    /// A line has ended: the byte order mark is allowed in front of the first only.
    begun: bool,
}

impl Parser {
    /// Takes bytes from `input` up to the end of the next event; `None` when all are taken and the event is not complete.
    ///
    /// # Errors
    /// `stream_oversized` ([`Kind::Upstream`]) for a line over [`MAX_LINE`] or an event over [`MAX_DATA`]. The stream is then
    /// of no more use.
    pub(crate) fn next(&mut self, input: &mut Bytes) -> Result<Option<Event>, Error> {
        while input.has_remaining() {
            if std::mem::take(&mut self.after_return) && input[0] == b'\n' {
                input.advance(1);
                continue;
            }
            let end = input.iter().position(|b| matches!(b, b'\r' | b'\n'));
            let piece = input.split_to(end.unwrap_or(input.len()));
            if self.line.len() + piece.len() > MAX_LINE {
                return Err(oversized("a line of the platform's stream is too long"));
            }
            self.line.extend_from_slice(&piece);
            if end.is_some() {
                self.after_return = input[0] == b'\r';
                input.advance(1);
                if let Some(event) = self.end_of_line()? {
                    return Ok(Some(event));
                }
            }
        }
        Ok(None)
    }

    fn end_of_line(&mut self) -> Result<Option<Event>, Error> {
        let mut line = self.line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.line.clear();
            return Ok(self.end_of_event());
        }
        let (field, value) = match line.iter().position(|b| *b == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &b""[..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.name = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                if self.data.len() + value.len() >= MAX_DATA {
                    return Err(oversized("an event of the platform's stream is too long"));
                }
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            // A comment (no field name), `id`, `retry`, and what is unknown.
            _ => {}
        }
        self.line.clear();
        Ok(None)
    }

    fn end_of_event(&mut self) -> Option<Event> {
        let name = std::mem::take(&mut self.name);
        let data = String::from_utf8_lossy(&std::mem::take(&mut self.data)).into_owned();
        let has_data = std::mem::take(&mut self.has_data);
        (has_data || !name.is_empty()).then_some(Event { name, data })
    }
}

fn oversized(message: &'static str) -> Error {
    Error::new(Kind::Upstream, "stream_oversized").with_message(message).with_retry(Retry::Never)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The events of an input that arrives in these pieces.
    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in pieces {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(event) = parser.next(&mut piece).expect("small") {
                events.push((event.name, event.data));
            }
        }
        events
    }

    fn events(text: &str) -> Vec<(String, String)> {
        parse([text.as_bytes()])
    }

    fn event(name: &str, data: &str) -> (String, String) {
        (name.into(), data.into())
    }

    #[test]
    fn the_space_after_the_colon_may_be_missing() {
        let expected = [event("a", "1"), event("b", " 2")];
        assert_eq!(events("event:a\ndata:1\n\nevent: b\ndata:  2\n\n"), expected);
    }

    #[test]
    fn lines_end_in_any_of_the_three_ways() {
        for end in ["\n", "\r\n", "\r"] {
            let text = "event:a\ndata:1\n\ndata:2\n\n".replace('\n', end);
            assert_eq!(events(&text), [event("a", "1"), event("", "2")], "{end:?}");
        }
    }

    #[test]
    fn data_lines_are_joined_and_comments_and_unknown_fields_are_not_seen() {
        let text =
            "\u{feff}: hello\nid: 7\nretry: 3\nevent: a\ndata: 1\ndata\ndata: 2\nfoo: bar\n\n: only a comment\n\n";
        assert_eq!(events(text), [event("a", "1\n\n2")]);
    }

    #[test]
    fn an_event_with_a_name_only_counts() {
        assert_eq!(events("event: conversation.stream.done\n\n"), [event("conversation.stream.done", "")]);
    }

    #[test]
    fn an_event_that_is_not_ended_does_not_count() {
        assert_eq!(events("event: a\ndata: {\"cut"), []);
        assert_eq!(events("event: a\ndata: 1\n"), []);
    }

    #[test]
    fn bytes_that_are_no_text_do_no_harm() {
        assert_eq!(parse([&b"data: \xff\n\n"[..]]), [event("", "\u{fffd}")]);
    }

    #[test]
    fn a_line_has_a_bound() {
        let mut parser = Parser::default();
        let line = [b"data:".to_vec(), vec![b'x'; MAX_LINE - 5]].concat();
        assert_eq!(parser.next(&mut Bytes::from(line)).expect("at the bound"), None);
        let error = parser.next(&mut Bytes::from_static(b"x")).expect_err("over the bound");
        assert_eq!(error.reason(), "stream_oversized");
    }

    #[test]
    fn an_event_has_a_bound() {
        let mut parser = Parser::default();
        let line = [b"data:".to_vec(), vec![b'x'; MAX_LINE - 6], b"\n".to_vec()].concat();
        let taken = (1..10).take_while(|_| parser.next(&mut Bytes::from(line.clone())).is_ok()).count();
        assert_eq!(taken, MAX_DATA / (MAX_LINE - 6));
    }

    proptest! {
        #[test]
        fn where_the_input_is_split_does_not_matter(
            written in proptest::collection::vec(("[a-z.]{1,8}", "[^\r\n]{0,12}", prop::sample::select(vec!["\n", "\r\n", "\r"])), 1..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut text = String::new();
            for (name, data, end) in &written {
                text.push_str(&format!("event:{name}{end}data: {data}{end}{end}"));
            }
            let mut cuts: Vec<_> = cuts.iter().map(|i| i.index(text.len() + 1)).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]);
            let expected: Vec<_> = written.iter().map(|(name, data, _)| event(name, data)).collect();
            prop_assert_eq!(parse(pieces), expected);
        }

        #[test]
        fn no_input_breaks_it(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
            parse(pieces.iter().map(Vec::as_slice));
        }
    }
}
