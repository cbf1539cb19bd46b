use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request,
    header::{AUTHORIZATION, CONTENT_LENGTH},
};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use crate::{Admitted, Decision, VerifiedBody, refused::Refused, report::Report};

/// How many frames are taken in before the timer and other tasks get their turn.
const FRAMES_PER_POLL: usize = 64;

/// What a scheme of signatures does with a request whose head is in order.
///
/// The body is judged when it is complete: it is kept until then in any case, and a request that waits for its body is
/// small if it carries no state of a hash.
pub trait Check {
    /// What is left to wait for when the signature is right. In the end it notes who signed.
    type Wait: Future<Output = Result<(), Refused>>;

    /// Judges the body, and notes on the context who signed it, if nothing has to be waited for.
    fn finish(self, context: &Context, body: &mut VerifiedBody) -> Result<Option<Self::Wait>, Refused>;
}

/// How much of an unverified body is read, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) bytes: usize,
    pub(crate) time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1024 * 1024, time: Duration::from_secs(10) }
    }
}

impl Limits {
    /// Refuses a body that says beforehand that it is too large.
    fn admit(self, request: &Request<impl Body>) -> Result<(), Error> {
        let declared = || request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let hint = request.body().size_hint();
        // A body that knows its size need not be asked twice.
        let bytes = hint.exact().unwrap_or_else(|| hint.lower().max(declared().unwrap_or(0)));
        if bytes > self.bytes as u64 { Err(self.too_large()) } else { Ok(()) }
    }

    fn too_large(self) -> Error {
        Error::new(Kind::TooLarge, "body_too_large")
            .with_message(format!("the body has more than {} bytes", self.bytes))
    }

    fn too_slow(self) -> Error {
        Error::new(Kind::Timeout, "body_timeout")
            .with_message(format!("the body did not arrive within {:?}", self.time))
    }
}

pin_project! {
    /// Reads a body, and judges its signature.
    #[must_use = "futures do nothing unless polled"]
    pub struct Verify<B, C>
    where
        C: Check,
    {
        #[pin]
        body: B,
        #[pin]
        timer: Option<Sleep>,
        limits: Limits,
        report: Report,
        // What goes further, but for what is read of the body.
        request: Option<Request<VerifiedBody>>,
        // What the head said, until the body is there.
        check: Option<Result<C, Refused>>,
        read: VerifiedBody,
        #[pin]
        wait: Option<C::Wait>,
    }
}

impl<B: Body, C: Check> Verify<B, C> {
    /// Decides by the head of the request (`check`), and if that is in order, or refusals are only reported, by its body.
    pub(crate) fn decide(
        mut request: Request<B>,
        limits: Limits,
        report: &Report,
        check: impl FnOnce(&Request<B>) -> Result<C, Refused>,
    ) -> Decision<Admitted<VerifiedBody>, Self> {
        let admitted = match check(&request) {
            Err(refused) if !report.is_on() => Err(refused),
            checked => limits.admit(&request).map(|()| checked).map_err(Refused::from),
        };
        let checked = match admitted {
            Ok(checked) => checked,
            Err(refused) => return Decision::Now(Err(refused.note(context(&mut request)))),
        };
        let (parts, body) = request.into_parts();
        Decision::Later(Self {
            body,
            timer: None,
            limits,
            report: report.clone(),
            request: Some(Request::from_parts(parts, VerifiedBody::default())),
            check: Some(checked),
            read: VerifiedBody::default(),
            wait: None,
        })
    }

    fn done(self: Pin<&mut Self>, verdict: Result<(), Refused>) -> Result<Admitted<VerifiedBody>, Error> {
        let this = self.project();
        let request = this.request.as_mut().expect("a future is not polled after it is ready");
        *request.body_mut() = mem::take(this.read);
        this.report.settle(context(request), verdict)?;
        Ok((this.request.take().expect("just seen"), ()))
    }
}

impl<B, C> Verify<B, C>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    C: Check,
{
    /// Reads to the end, within the limits.
    fn poll_read(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Result<(), Error>> {
        let mut this = self.project();
        let mut frames = 0;
        while frames < FRAMES_PER_POLL {
            let Poll::Ready(frame) = this.body.as_mut().poll_frame(task) else { break };
            frames += 1;
            let frame = match frame {
                None => return Poll::Ready(Ok(())),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    let error = Error::new(Kind::Invalid, "body_error").with_source(error);
                    return Poll::Ready(Err(error.with_message("the body could not be read to its end")));
                }
            };
            match frame.into_data() {
                Ok(data) if data.len() > this.limits.bytes - this.read.len() => {
                    return Poll::Ready(Err(this.limits.too_large()));
                }
                Ok(data) => this.read.push(data),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        this.read.set_trailers(trailers);
                    }
                }
            }
        }
        if frames == FRAMES_PER_POLL {
            // A body that always has another frame must not keep the worker to itself, nor outrun the timer.
            task.waker().wake_by_ref();
        }
        if this.timer.is_none() {
            // Not earlier: a body that is there already needs no timer.
            this.timer.set(Some(sleep(this.limits.time)));
        }
        let timer = this.timer.as_pin_mut().expect("just set");
        timer.poll(task).map(|()| Err(this.limits.too_slow()))
    }
}

impl<B, C> Future for Verify<B, C>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    C: Check,
{
    type Output = Result<Admitted<VerifiedBody>, Error>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        if self.check.is_some() {
            let read = ready!(self.as_mut().poll_read(task));
            let mut this = self.as_mut().project();
            let checked = this.check.take().expect("just seen");
            let context = context(this.request.as_mut().expect("it is taken when all is done"));
            if let Err(error) = read {
                // What was not read to its end cannot be handed on, whatever happens to other refusals.
                return Poll::Ready(Err(Refused::from(error).note(context)));
            }
            match checked.and_then(|check| check.finish(context, this.read)) {
                Ok(Some(wait)) => this.wait.set(Some(wait)),
                finished => return Poll::Ready(self.done(finished.map(|_| ()))),
            }
        }
        let wait = self.as_mut().project().wait.as_pin_mut().expect("a future is not polled after it is ready");
        let verdict = ready!(wait.poll(task));
        Poll::Ready(self.done(verdict))
    }
}

impl<B, C: Check> fmt::Debug for Verify<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verify").field("limits", &self.limits).field("read", &self.read).finish_non_exhaustive()
    }
}

/// Borrowed, where [`Context::of`] makes a clone: next to the hash of a short message that is dear.
pub(crate) fn context<B>(request: &mut Request<B>) -> &Context {
    request.extensions_mut().get_or_insert_default::<Context>()
}

/// The only value of a header, if it is there.
pub(crate) fn optional<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Error> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(malformed(format!("the header {name} is given more than once")));
    }
    Ok(value)
}

/// The only value of a header.
pub(crate) fn required<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a HeaderValue, Error> {
    optional(headers, name)?.ok_or_else(|| missing(format!("the header {name} is missing")))
}

/// The token in the only `authorization` header (RFC 6750 §2.1). The name of the scheme has no case (RFC 9110 §11.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Result<&[u8], Error> {
    match required(headers, &AUTHORIZATION)?.as_bytes().split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => Ok(token),
        _ => Err(missing("the header authorization has no bearer token".to_owned())),
    }
}

/// The only value of a header, as `N` bytes in hex digits of either case.
pub(crate) fn signature<const N: usize>(headers: &HeaderMap, name: &HeaderName) -> Result<[u8; N], Error> {
    let signature = bytes_of_hex(required(headers, name)?.as_bytes());
    signature.ok_or_else(|| malformed(format!("the header {name} is not {} hex digits", 2 * N)))
}

/// Without a branch or a table, so that many digits are read at a time.
pub(crate) fn bytes_of_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let (pairs, rest) = digits.as_chunks();
    let pairs: &[[u8; 2]; N] = pairs.try_into().ok()?;
    let (mut bytes, mut all) = ([0; N], 0);
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| {
            let number = digit.wrapping_sub(b'0');
            let letter = (digit | 0x20).wrapping_sub(b'a');
            let (is_number, is_letter) = (number < 10, letter < 6);
            if is_number {
                number
            } else if is_letter {
                letter + 10
            } else {
                255
            }
        });
        all |= high | low;
        *byte = high << 4 | low;
    }
    (all < 16 && rest.is_empty()).then_some(bytes)
}

pub(crate) fn missing(message: String) -> Error {
    Error::new(Kind::Unauthenticated, "missing_credentials").with_message(message)
}

pub(crate) fn malformed(message: String) -> Error {
    Error::new(Kind::Unauthenticated, "parse_error").with_message(message)
}

/// One answer for every signature that no key explains, so that it tells nobody which bots there are.
pub(crate) fn unsigned() -> Error {
    Error::new(Kind::Unauthenticated, "signature_invalid")
        .with_message("the signature is not that of the body under a current key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read_as_others_read_it() {
        for byte in 0..=255_u8 {
            for digits in [[byte, b'7'], [b'e', byte]] {
                assert_eq!(bytes_of_hex::<1>(&digits).map(Vec::from), hex::decode(digits).ok(), "{digits:?}");
            }
        }
        assert_eq!(bytes_of_hex(b"00ffA5a5"), Some([0, 255, 0xa5, 0xa5]));
        for wrong in ["", "00ffA5a", "00ffA5a50", "00ffA5a500"] {
            assert_eq!(bytes_of_hex::<4>(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
