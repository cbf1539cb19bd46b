use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context as Task, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use coze_core::{BoxError, Context, Error, Kind};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request,
    header::{AUTHORIZATION, CONTENT_LENGTH},
    request::Parts,
};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use crate::{Admitted, Decision, VerifiedBody, refused::Refused, report::Report, take_request};

/// How many frames are taken in before the timer and other tasks get their turn.
const FRAMES_PER_POLL: usize = 64;

/// A policy whose requests are signed over their body.
///
/// The body is judged when it is complete: it is kept until then in any case, and a request that waits for its body is
/// small if it carries no state of a hash.
pub trait Scheme: Clone {
    /// What the head says.
    type Claim;
    /// What is left to wait for when the signature is right. In the end it notes who signed.
    type Wait: Future<Output = Result<(), Refused>>;

    /// How much is read, and what happens to refusals.
    fn bounds(&self) -> (Limits, &Report);

    /// Looks at the head.
    fn claim(&self, head: &Parts) -> Result<Self::Claim, Refused>;

    /// Judges the body, and notes on the context who signed it, if nothing has to be waited for.
    fn judge(
        &self,
        claim: &Self::Claim,
        context: &Context,
        body: &mut VerifiedBody,
    ) -> Result<Option<Self::Wait>, Refused>;
}

/// How much of an unverified body is read, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
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
    fn admit(self, head: &Parts, body: &impl Body) -> Result<(), Error> {
        let declared = || head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let hint = body.size_hint();
        // A body that knows its size need not be asked twice.
        let bytes = hint.exact().unwrap_or_else(|| hint.lower().max(declared().unwrap_or(0)));
        if bytes > self.bytes as u64 { Err(self.too_large()) } else { Ok(()) }
    }

    /// Reads to the end, but for the time it takes.
    fn poll_read<B>(self, body: &mut B, read: &mut VerifiedBody, task: &mut Task<'_>) -> Poll<Result<(), Error>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        for _ in 0..FRAMES_PER_POLL {
            let frame = match ready!(Pin::new(&mut *body).poll_frame(task)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    let error = Error::new(Kind::Invalid, "body_error").with_source(error);
                    return Poll::Ready(Err(error.with_message("the body could not be read to its end")));
                }
            };
            match frame.into_data() {
                Ok(data) if data.len() > self.bytes - read.len() => return Poll::Ready(Err(self.too_large())),
                Ok(data) => read.push(data),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        read.set_trailers(trailers);
                    }
                }
            }
        }
        // A body that always has another frame must not keep the worker to itself, nor outrun the timer.
        task.waker().wake_by_ref();
        Poll::Pending
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

/// Decides by the head of a request, and if that is in order, or refusals are only reported, by its body: at once, if that is
/// there and nothing else has to be waited for.
pub(crate) fn decide<B, S>(scheme: &S, head: &mut Parts, mut body: B) -> Decision<(VerifiedBody, ()), Verify<B, S>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    S: Scheme,
{
    let (limits, report) = scheme.bounds();
    let claim = scheme.claim(head);
    let is_over = claim.is_err() && !report.is_on();
    if !is_over && let Err(error) = limits.admit(head, &body) {
        return Decision::Now(Err(Refused::from(error).note(&Context::of(&mut head.extensions))));
    }
    let mut read = VerifiedBody::default();
    // Nobody is woken by this: if something is missing, the future asks again.
    let whole = match is_over {
        true => Poll::Ready(Ok(())),
        false => limits.poll_read(&mut body, &mut read, &mut Task::from_waker(Waker::noop())),
    };
    let (claim, wait) = match whole {
        Poll::Pending => (Some(claim), None),
        // What was not read to its end cannot be handed on, whatever happens to other refusals.
        Poll::Ready(Err(error)) => {
            return Decision::Now(Err(Refused::from(error).note(&Context::of(&mut head.extensions))));
        }
        Poll::Ready(Ok(())) => {
            let mut inserted = None;
            let context = match head.extensions.get() {
                Some(context) => context,
                None => &*inserted.insert(Context::insert(&mut head.extensions)),
            };
            match judge(scheme, claim, context, &mut read) {
                Ok(Some(wait)) => (None, Some(wait)),
                judged => return Decision::Now(report.settle(context, judged.map(|_| ())).map(|()| (read, ()))),
            }
        }
    };
    let (request, scheme) = (Some(take_request(head, body)), scheme.clone());
    Decision::Later(Verify { request, read, claim, timer: None, wait, scheme })
}

fn judge<S: Scheme>(
    scheme: &S,
    claim: Result<S::Claim, Refused>,
    context: &Context,
    body: &mut VerifiedBody,
) -> Result<Option<S::Wait>, Refused> {
    match claim {
        Ok(ref claim) => scheme.judge(claim, context, body),
        Err(refused) => Err(refused),
    }
}

pin_project! {
    /// Reads the rest of a body, and judges its signature.
    #[must_use = "futures do nothing unless polled"]
    pub struct Verify<B, S>
    where
        S: Scheme,
    {
        request: Option<Request<B>>,
        read: VerifiedBody,
        // Until the body is there.
        claim: Option<Result<S::Claim, Refused>>,
        #[pin]
        timer: Option<Sleep>,
        #[pin]
        wait: Option<S::Wait>,
        scheme: S,
    }
}

impl<B, S> Future for Verify<B, S>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    S: Scheme,
{
    type Output = Result<Admitted<VerifiedBody>, Error>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (limits, report) = this.scheme.bounds();
        let request = this.request.as_mut().expect("a future is not polled after it is ready");
        let verdict = loop {
            if let Some(wait) = this.wait.as_mut().as_pin_mut() {
                break ready!(wait.poll(task));
            }
            let read = match limits.poll_read(request.body_mut(), this.read, task) {
                Poll::Ready(read) => read,
                Poll::Pending => {
                    if this.timer.is_none() {
                        // Not earlier: a body that is there already needs no timer.
                        this.timer.set(Some(sleep(limits.time)));
                    }
                    let timer = this.timer.as_mut().as_pin_mut().expect("just set");
                    ready!(timer.poll(task));
                    Err(limits.too_slow())
                }
            };
            let context = &Context::of(request.extensions_mut());
            if let Err(error) = read {
                return Poll::Ready(Err(Refused::from(error).note(context)));
            }
            let claim = this.claim.take().expect("it is judged once, before anything else is waited for");
            match judge(this.scheme, claim, context, this.read) {
                Ok(Some(wait)) => this.wait.set(Some(wait)),
                judged => break judged.map(|_| ()),
            }
        };
        report.settle(&Context::of(request.extensions_mut()), verdict)?;
        let request = this.request.take().expect("just seen");
        Poll::Ready(Ok((request.map(|_| mem::take(this.read)), ())))
    }
}

impl<B, S: Scheme> fmt::Debug for Verify<B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verify")
            .field("limits", &self.scheme.bounds().0)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
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

/// The same of several headers in one pass, which is faster than to hash two names unless there are more than some ten headers.
pub(crate) fn each<'a, const N: usize>(
    headers: &'a HeaderMap,
    names: [&HeaderName; N],
) -> [Result<Option<&'a HeaderValue>, Error>; N] {
    let mut found = [const { Ok(None) }; N];
    for (name, value) in headers {
        if let Some(index) = names.iter().position(|wanted| *wanted == name) {
            found[index] = match found[index] {
                Ok(None) => Ok(Some(value)),
                _ => Err(malformed(format!("the header {name} is given more than once"))),
            };
        }
    }
    found
}

/// The only value of a header.
pub(crate) fn required<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a HeaderValue, Error> {
    optional(headers, name)?.ok_or_else(|| missing(format!("the header {name} is missing")))
}

/// The token in the only `authorization` header (RFC 6750 §2.1), behind one space or more. The name of the scheme has no case
/// (RFC 9110 §11.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Result<&[u8], Error> {
    match required(headers, &AUTHORIZATION)?.as_bytes().split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => {
            Ok(&token[token.iter().take_while(|byte| **byte == b' ').count()..])
        }
        _ => Err(missing("the header authorization has no bearer token".to_owned())),
    }
}

/// The only value of a header, as `N` bytes in hex digits of either case.
pub(crate) fn signature<const N: usize>(headers: &HeaderMap, name: &HeaderName) -> Result<[u8; N], Error> {
    signature_of(optional(headers, name)?, name)
}

/// The same, where the header was looked up.
pub(crate) fn signature_of<const N: usize>(value: Option<&HeaderValue>, name: &HeaderName) -> Result<[u8; N], Error> {
    let value = value.ok_or_else(|| missing(format!("the header {name} is missing")))?;
    bytes_of_hex(value.as_bytes()).ok_or_else(|| malformed(format!("the header {name} is not {} hex digits", 2 * N)))
}

/// Without a branch or a table, so that many digits are read at a time.
pub(crate) fn bytes_of_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let (pairs, rest) = digits.as_chunks();
    let pairs: &[[u8; 2]; N] = pairs.try_into().ok()?;
    let (mut values, mut all) = ([[0; 2]; N], 0);
    for (value, digit) in values.as_flattened_mut().iter_mut().zip(pairs.as_flattened()) {
        let number = digit.wrapping_sub(b'0');
        let letter = (digit | 0x20).wrapping_sub(b'a');
        *value = if number < 10 { number } else { letter.saturating_add(10) };
        all |= *value;
    }
    (all < 16 && rest.is_empty()).then(|| values.map(|[high, low]| high << 4 | low))
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
