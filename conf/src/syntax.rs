//! TOML's own mistakes: what to say about them, and what of the file is still worth reading.
//!
//! A text without quotes, a malformed value and a key given twice leave the rest of the file as
//! clear as it was. Any other mistake makes what follows it uncertain, up to the next line that
//! begins a table: about that part nothing more is said, for it would be guessed.

use toml::de::{DeTable, DeValue, Error};

use crate::brackets;
use crate::diagnostic::{Draft, Sink, Span};
use crate::limits::DIAGNOSTICS_MAX;
use crate::units::quoted;

/// Longer files are read only up to their first mistake of syntax, so that a file of nothing but
/// mistakes costs no more memory than another.
const RECOVERY_BYTES_MAX: usize = 256 << 10;

/// The document, as far as it can be made out; what is wrong with it is pushed.
pub(crate) fn parse<'t>(text: &'t str, sink: &mut Sink) -> DeTable<'t> {
    if text.len() <= RECOVERY_BYTES_MAX {
        let (document, errors) = DeTable::parse_recoverable(text);
        report(text, document.get_ref(), errors, sink);
        return document.into_inner();
    }
    match DeTable::parse(text) {
        Ok(document) => document.into_inner(),
        Err(error) => {
            report(text, &DeTable::new(), vec![error], sink);
            sink.unread(Span {
                start: 0,
                end: text.len() + 1,
            });
            DeTable::new()
        }
    }
}

fn report(text: &str, document: &DeTable<'_>, mut errors: Vec<Error>, sink: &mut Sink) {
    errors.sort_by_key(|error| error.span().map(|span| span.start));
    let unclosed = |error: &Error| {
        let message = error.message();
        message.starts_with("unclosed array,") || message.starts_with("unclosed inline table")
    };
    if errors.iter().any(unclosed)
        && let Some((bracket, header)) = brackets::never_closed(text)
    {
        let shown = text.get(bracket.start..bracket.end).unwrap_or_default();
        let draft =
            Draft::error(format!("this `{shown}` is never closed")).at(bracket, "opened here");
        sink.push(draft.and_at(header, "still open here"));
        // It takes the rest of the file with it.
        sink.unread(Span {
            start: bracket.start,
            end: text.len() + 1,
        });
    }
    let mut unread_end = 0;
    for error in errors.iter().take(DIAGNOSTICS_MAX) {
        let span: Span = error.span().unwrap_or(0..0).into();
        if span.start < unread_end {
            continue;
        }
        match Kind::of(error.message()) {
            Kind::Duplicate => sink.push(duplicate(text, document, span)),
            Kind::Unquoted if has_comment(text, span) => {
                sink.push(unquoted(text, span));
                sink.unread_value(span);
            }
            Kind::Unquoted => sink.unquoted(span),
            Kind::Value => {
                let start = line_start(text, span.start);
                sink.push(malformed(text, error, span));
                unread_end = line_end(text, span.start);
                sink.unread_value(Span {
                    start,
                    end: unread_end,
                });
            }
            Kind::Structure => {
                let start = line_start(text, span.start);
                sink.push(malformed(text, error, span));
                unread_end = next_header(text, span.start);
                sink.unread(Span {
                    start,
                    end: unread_end,
                });
            }
        }
    }
    if errors.len() > DIAGNOSTICS_MAX {
        sink.unread(Span {
            start: 0,
            end: text.len() + 1,
        });
    }
}

/// How much of the file a mistake makes uncertain.
enum Kind {
    /// Nothing: the first of the two keys counts.
    Duplicate,
    /// Nothing: the text is taken as if it had quotes.
    Unquoted,
    /// The value.
    Value,
    /// All that follows, up to the next table.
    Structure,
}

impl Kind {
    fn of(message: &str) -> Kind {
        const VALUES: [&str; 3] = [
            "invalid ",
            "missing escaped value",
            "unexpected key or value",
        ];
        // It ends the reading of the file, for want of a `=`.
        const KEY: &str = "invalid unquoted key";
        match message {
            "duplicate key" => Kind::Duplicate,
            _ if message.starts_with("string values must be quoted") => Kind::Unquoted,
            _ if message.starts_with(KEY) => Kind::Structure,
            _ if VALUES.iter().any(|start| message.starts_with(start)) => Kind::Value,
            _ => Kind::Structure,
        }
    }
}

/// A text without quotes that was not mended by saying that no text belongs there.
pub(crate) fn unquoted(text: &str, span: Span) -> Draft {
    let token = text.get(span.start..span.end).unwrap_or_default();
    let word = token.to_ascii_lowercase();
    let draft = match word.as_str() {
        "true" | "false" => {
            let draft = Draft::error(format!("{} is no value", quoted(token)));
            return draft
                .at(span, "expected small letters")
                .help(format!("write {word}"));
        }
        _ => Draft::error("a text needs quotes").at(span, "expected quotes around it"),
    };
    match has_comment(text, span) {
        true => draft.help(COMMENT),
        false => draft.help(format!("write \"{}\"", token.escape_debug())),
    }
}

fn has_comment(text: &str, span: Span) -> bool {
    text.get(span.start..span.end)
        .is_some_and(|token| token.contains(" //"))
}

const COMMENT: &str = "if this is a comment: comments begin with `#`";

fn malformed(text: &str, error: &Error, span: Span) -> Draft {
    if let Some(token) = bare_text(text, span) {
        return unquoted(text, token);
    }
    let (message, expected) = match error.message().split_once(", expected ") {
        Some((message, "nothing")) => (message, String::new()),
        Some((message, expected)) => (message, format!("expected {expected}")),
        None => (error.message(), String::new()),
    };
    let draft = Draft::error(message).at(span, expected);
    match text.get(span.start..span.end) {
        Some(":") => draft.help("a key and its value are joined by `=`"),
        Some("//") => draft.help(COMMENT),
        _ => draft,
    }
}

/// The word that a malformed value is part of, where it can only be a text without quotes.
fn bare_text(text: &str, span: Span) -> Option<Span> {
    let line = line_start(text, span.start);
    let value = line + text.get(line..span.start)?.rfind('=')? + 1;
    let value = value + text[value..].find(|c: char| c != ' ' && c != '\t')?;
    let end = value
        + text[value..]
            .find(|c: char| c.is_whitespace() || ",}#\"'".contains(c))
            .unwrap_or(text.len() - value);
    let word = &text[value..end];
    let has_form = word.contains(':')
        || word.matches('.').count() > 1
        || word.contains(|c: char| c.is_alphabetic());
    let whole = word.starts_with(|c: char| c.is_alphanumeric()) || word.starts_with("[:");
    (has_form && whole && end >= span.start).then_some(Span { start: value, end })
}

fn duplicate(text: &str, document: &DeTable<'_>, span: Span) -> Draft {
    let key = text.get(span.start..span.end).unwrap_or_default();
    let draft = Draft::error(format!("{} is given twice", quoted(key))).at(span, "again here");
    let draft = draft.and_at(first_of(text, document, span, key), "first here");
    draft.help("keep one of the two")
}

/// Where the key of this name before `span` is, in the same table as far as that can be told.
fn first_of(text: &str, document: &DeTable<'_>, span: Span, key: &str) -> Option<Span> {
    let line = text
        .get(line_start(text, span.start)..line_end(text, span.start))?
        .trim();
    if line.starts_with('[') {
        let before = text.get(..line_start(text, span.start))?;
        let mut at = 0;
        return before.split_inclusive('\n').find_map(|other| {
            let start = at + other.find('[').unwrap_or(0);
            at += other.len();
            (other.trim() == line).then_some(Span {
                start,
                end: start + line.len(),
            })
        });
    }
    let mut best = None;
    last_before(text, document, span, key, &mut best);
    best
}

fn last_before(text: &str, table: &DeTable<'_>, at: Span, name: &str, best: &mut Option<Span>) {
    for (key, value) in table {
        let key_span: Span = key.span().into();
        let is_it = key.get_ref() == name && key_span.start < at.start;
        if is_it && best.is_none_or(|best| best.start < key_span.start) {
            *best = Some(key_span);
        }
        let value_span: Span = value.span().into();
        let holds = value_span.start <= at.start && at.start < value_span.end;
        match value.get_ref() {
            DeValue::Table(table) if holds || !is_inline(text, value_span) => {
                last_before(text, table, at, name, best)
            }
            DeValue::Array(array) => {
                for table in array
                    .iter()
                    .filter_map(|element| element.get_ref().as_table())
                {
                    last_before(text, table, at, name, best);
                }
            }
            _ => {}
        }
    }
}

fn is_inline(text: &str, span: Span) -> bool {
    text.as_bytes().get(span.start) == Some(&b'{')
}

fn line_start(text: &str, at: usize) -> usize {
    text.get(..at)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |newline| newline + 1)
}

fn line_end(text: &str, at: usize) -> usize {
    text.get(at..)
        .and_then(|after| after.find('\n'))
        .map_or(text.len(), |length| at + length)
}

/// The start of the next line that begins a table.
fn next_header(text: &str, at: usize) -> usize {
    let mut start = line_end(text, at) + 1;
    while let Some(line) = text.get(start..) {
        if line.trim_start_matches([' ', '\t']).starts_with('[') {
            return start;
        }
        if start >= text.len() {
            break;
        }
        start = line_end(text, start) + 1;
    }
    text.len() + 1
}
