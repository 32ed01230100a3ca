//! Finds the bracket that was never closed: TOML lets arrays and inline tables go on over lines, so
//! that its own complaint comes long after the place.

use crate::diagnostic::Span;

/// The first bracket of a value that is still open where a table begins, or the file ends; and
/// that table's header.
pub(crate) fn never_closed(text: &str) -> Option<(Span, Option<Span>)> {
    let mut open: Vec<usize> = Vec::new();
    let mut at = 0;
    let mut line_begins = true;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if line_begins && let Some(length) = header(rest) {
            if let Some(bracket) = open.first() {
                return Some((
                    one(*bracket),
                    Some(Span {
                        start: at,
                        end: at + length,
                    }),
                ));
            }
            at += length;
        }
        let rest = &text[at..];
        let Some(next) = rest.chars().next() else {
            break;
        };
        let to_line_end = rest.find('\n').unwrap_or(rest.len());
        // Of a table's header that is malformed nothing stays open.
        let malformed_header = line_begins && open.is_empty() && next == '[';
        line_begins = next == '\n' || (line_begins && (next == ' ' || next == '\t'));
        match next {
            _ if malformed_header => {
                at += to_line_end;
                continue;
            }
            '#' => {
                at += to_line_end;
                continue;
            }
            '"' | '\'' => {
                at += string(rest, next);
                continue;
            }
            '[' | '{' => open.push(at),
            ']' | '}' => {
                open.pop();
            }
            _ => {}
        }
        at += next.len_utf8();
    }
    open.first().map(|bracket| (one(*bracket), None))
}

fn one(at: usize) -> Span {
    Span {
        start: at,
        end: at + 1,
    }
}

/// The length of `[name]` or `[[name]]`, where the text begins with one that ends its line.
fn header(text: &str) -> Option<usize> {
    let line = text.lines().next()?;
    let content = line.split('#').next()?.trim_end();
    let name = content.strip_prefix('[')?.strip_suffix(']')?;
    let name = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    let is_key = |c: char| c.is_ascii_alphanumeric() || "-_. \t".contains(c);
    let begins = name
        .trim_start()
        .starts_with(|c: char| c.is_ascii_alphabetic());
    (begins && name.chars().all(is_key)).then_some(content.len())
}

/// The length of the string that a text begins with; of one line, unless it has three quotes.
fn string(text: &str, quote: char) -> usize {
    let three = if quote == '"' { "\"\"\"" } else { "'''" };
    let (start, multi_line) = if text.starts_with(three) {
        (3, true)
    } else {
        (1, false)
    };
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(start) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            '\n' if !multi_line => return at,
            _ if multi_line && text[at..].starts_with(three) => return at + 3,
            _ if c == quote && !multi_line => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn found(text: &str, bracket: Option<usize>, header: Option<&str>) {
        let spans = never_closed(text);
        assert_eq!(spans.map(|(bracket, _)| bracket.start), bracket, "{text}");
        let shown = spans
            .and_then(|(_, header)| header)
            .map(|span| &text[span.start..span.end]);
        assert_eq!(shown, header, "{text}");
    }

    #[test]
    fn brackets() {
        found("a = [1, 2]\n[b]\nc = { d = [] }\n", None, None);
        found("a = [1, 2\n[b]\nc = 1\n", Some(4), Some("[b]"));
        found("a = { b = 1\n  [[c]] # d\n", Some(4), Some("[[c]]"));
        found("a = { b = [1\n", Some(4), None);
        found("a = \"[\"\nb = '{' # {\n", None, None);
        found("a = \"\"\"\n[\n\"\"\"\nb = \"\\\"[\"\n", None, None);
        found("a = [\n  [0],\n  [1],\n]\n", None, None);
        found("a = \"[\n[b]\n", None, None);
        found("[a\nb = 1\n[c]\n", None, None);
    }
}
