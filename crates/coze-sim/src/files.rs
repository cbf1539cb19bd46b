use serde_json::{Value, json};

use crate::{
    call::Call,
    reply::{Refusal, Reply},
    state::{File, Shared, State},
};

/// The endings the platform's document lists, and `txt`, `md`, `json`. A name without an ending is let through.
const ENDINGS: &str = "doc docx xls xlsx ppt pptx pdf numbers csv cpp py java c txt md json \
    jpg jpeg jpg2 png gif webp heic heif bmp pcd tiff wav mp3 flac m4a aac ogg wma midi \
    mp4 avi mov 3gp 3gpp flv webm wmv rmvb m4v mkv rar zip 7z gz gzip bz2";
/// The most parts of a form that are looked at.
const MAX_PARTS: usize = 16;

/// `POST /v1/files/upload`. The content is not kept.
pub(crate) fn upload(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let (name, bytes) = read_form(call.header("content-type").unwrap_or_default(), &call.body)?;
    if let Some((_, ending)) = name.rsplit_once('.')
        && !ENDINGS.split_whitespace().any(|known| known.eq_ignore_ascii_case(ending))
    {
        return Err(Refusal::new(4303, format!("The file type {ending} is not supported")));
    }
    let id = state.ids.id();
    let file = File { id: id.clone(), account: call.grant.account.clone(), name, bytes, created: call.unix };
    let reply = Reply::Data(to_json(&file));
    state.files.insert(id, file);
    Ok(reply)
}

/// `GET /v1/files/retrieve`.
pub(crate) fn retrieve(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let id = call.need_query("file_id")?;
    match state.files.get(id).filter(|file| file.account == call.grant.account) {
        Some(file) => Ok(Reply::Data(to_json(file))),
        None => Err(Refusal::new(4200, format!("The file {id} does not exist"))),
    }
}

fn to_json(file: &File) -> Value {
    json!({ "id": file.id, "bytes": file.bytes, "created_at": file.created, "file_name": file.name })
}

/// The name and size of the one file in a form (RFC 7578).
fn read_form(content_type: &str, body: &[u8]) -> Result<(String, usize), Refusal> {
    let no_form = || Refusal::new(4300, "The uploaded file is empty, or the body is not multipart/form-data");
    let invalid = |why: &str| Refusal::new(4304, format!("The uploaded file is invalid: {why}"));
    let (kind, _) = content_type.split_once(';').ok_or_else(no_form)?;
    let boundary = parameter(content_type, "boundary").filter(|boundary| (1..=70).contains(&boundary.len()));
    let boundary = boundary.filter(|_| kind.trim().eq_ignore_ascii_case("multipart/form-data")).ok_or_else(no_form)?;
    if body.is_empty() {
        return Err(no_form());
    }
    let delimiter = format!("--{boundary}");
    let Some(start) = find(body, delimiter.as_bytes()) else { return Err(invalid("no part begins")) };
    let mut rest = &body[start + delimiter.len()..];
    let next = format!("\r\n{delimiter}");
    let mut file = None;
    for _ in 0..MAX_PARTS {
        if rest.starts_with(b"--") {
            return match file {
                Some((_, 0)) | None => Err(no_form()),
                Some(file) => Ok(file),
            };
        }
        let head = find(rest, b"\r\n\r\n").ok_or_else(|| invalid("a part has no end of its headers"))?;
        let content = &rest[head + 4..];
        let end = find(content, next.as_bytes()).ok_or_else(|| invalid("a part does not end"))?;
        if let Some(name) = file_name(&String::from_utf8_lossy(&rest[..head]))
            && file.replace((name, end)).is_some()
        {
            return Err(Refusal::new(4301, "Only one file can be uploaded at a time"));
        }
        rest = &content[end + next.len()..];
    }
    Err(invalid("it has too many parts"))
}

/// The file name in the headers of a part; other fields have none.
fn file_name(headers: &str) -> Option<String> {
    let is_disposition = |line: &&str| line.to_ascii_lowercase().starts_with("content-disposition:");
    parameter(headers.lines().find(is_disposition)?, "filename")
}

/// A parameter of a header's value, with its quotes taken off. Between quotes a semicolon is part of it, and so is a quote
/// after a backslash (RFC 9110 §5.6.4).
fn parameter(value: &str, name: &str) -> Option<String> {
    let (_, mut rest) = value.split_once(';')?;
    loop {
        let (key, after) = rest.split_once('=')?;
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.match_indices('"').find(|(at, _)| !quoted[..*at].ends_with('\\'));
                let (value, next) = quoted.split_at(end?.0);
                (value.replace("\\\"", "\""), &next[1..])
            }
            None => {
                let (value, next) = after.split_once(';').unwrap_or((after, ""));
                (value.trim().to_owned(), next)
            }
        };
        if key.trim_start_matches(';').trim().eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = next;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    // The first byte is looked for alone, so that large contents take one pass.
    let (first, mut at) = (*wanted.first()?, 0);
    while let Some(skipped) = bytes[at..].iter().position(|byte| *byte == first) {
        at += skipped;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(parts: &[(&str, &str)]) -> Vec<u8> {
        let part = |(disposition, content): &(&str, &str)| {
            format!(
                "--b\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: text/plain\r\n\r\n{content}\r\n"
            )
        };
        (parts.iter().map(part).collect::<String>() + "--b--\r\n").into_bytes()
    }

    fn read(body: &[u8]) -> Result<(String, usize), i64> {
        read_form("multipart/form-data; boundary=\"b\"", body).map_err(|refusal| refusal.code)
    }

    const FILE: (&str, &str) = ("name=\"file\"; filename=\"a.txt\"", "hello");

    #[test]
    fn the_one_file_of_a_form_is_found() {
        assert_eq!(read(&form(&[FILE])), Ok(("a.txt".into(), 5)));
        assert_eq!(read(&form(&[("name=\"other\"", "x"), FILE])), Ok(("a.txt".into(), 5)));
        for (given, name) in [("a;b.txt", "a;b.txt"), ("a\\\";b.txt", "a\";b.txt"), ("文件.txt", "文件.txt"), ("", "")]
        {
            let disposition = format!("name=\"file\"; filename=\"{given}\"");
            assert_eq!(read(&form(&[(&disposition, "x")])), Ok((name.into(), 1)));
        }
        assert_eq!(read(&form(&[("name=file; filename=a.txt", "x")])), Ok(("a.txt".into(), 1)));
        let tricky = ("name=\"file\"; filename=\"a\"", "\r\n-\r\n--\r\n--c");
        assert_eq!(read(&form(&[tricky])), Ok(("a".into(), tricky.1.len())));
    }

    proptest::proptest! {
        #[test]
        fn a_form_is_read_whatever_is_in_the_file(content in proptest::collection::vec(0_u8..=255, 1..200)) {
            let mut body = form(&[(FILE.0, "")]);
            let at = body.len() - "\r\n--b--\r\n".len();
            body.splice(at..at, content.iter().copied());
            // A content that holds the delimiter itself is another form.
            if find(&content, b"--b").is_none() {
                proptest::prop_assert_eq!(read(&body), Ok(("a.txt".into(), content.len())));
            }
        }

        #[test]
        fn any_form_gets_a_verdict(content_type in ".{0,80}", body in proptest::collection::vec(0_u8..=255, 0..200)) {
            let _ = read_form(&content_type, &body);
            let _ = read(&body);
            let _ = read(&[b"--b\r\n", &body[..]].concat());
        }
    }

    #[test]
    fn other_forms_are_refused_with_their_code() {
        assert_eq!(read_form("application/json", b"{}").map_err(|r| r.code), Err(4300));
        assert_eq!(read_form("multipart/form-data; x=y", b"{}").map_err(|r| r.code), Err(4300));
        assert_eq!(read(b""), Err(4300));
        assert_eq!(read(&form(&[])), Err(4300));
        assert_eq!(read(&form(&[(FILE.0, "")])), Err(4300));
        assert_eq!(read(&form(&[FILE, FILE])), Err(4301));
        assert_eq!(read(b"nothing"), Err(4304));
        let whole = form(&[FILE]);
        for end in 3..whole.len() - 6 {
            assert_eq!(read(&whole[..end]), Err(4304), "{}", String::from_utf8_lossy(&whole[..end]));
        }
        assert_eq!(read(&form(&[("name=\"x\"", "y"); MAX_PARTS + 1])), Err(4304));
    }
}
