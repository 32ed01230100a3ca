//! Typed access to a TOML table that collects every mistake, and goes on.
//!
//! Invariants: a key is known because somebody asked for it, so that a key cannot be read and yet
//! be called unknown; [`Field::Wrong`] is only ever returned after the reason was pushed.

use std::fmt::Display;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Draft, Sink, Span};
use crate::suggest::nearest;
use crate::units::{Size, TimeSpan, UnitError, quoted};

/// A value and where it was written; no place where it is a default.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Option<Span>,
}

impl<T> At<T> {
    pub(crate) fn new(value: T, span: Span) -> At<T> {
        At {
            value,
            span: Some(span),
        }
    }

    pub(crate) fn default(value: T) -> At<T> {
        At { value, span: None }
    }
}

/// What became of a key.
#[derive(Clone, Debug)]
pub(crate) enum Field<T> {
    /// It is not there.
    Absent,
    /// It is there, and wrong; the reason was pushed.
    Wrong,
    /// It is there.
    Given(At<T>),
}

impl<T> Field<T> {
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Field::Absent)
    }

    pub(crate) fn given(&self) -> Option<&At<T>> {
        match self {
            Field::Given(at) => Some(at),
            Field::Absent | Field::Wrong => None,
        }
    }

    pub(crate) fn value(&self) -> Option<&T> {
        self.given().map(|at| &at.value)
    }

    /// The value, or this one where there is none that is right.
    pub(crate) fn or(self, default: T) -> T {
        self.or_at(default).value
    }

    pub(crate) fn or_at(self, default: T) -> At<T> {
        match self {
            Field::Given(at) => at,
            Field::Absent | Field::Wrong => At::default(default),
        }
    }

    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Field<U> {
        match self {
            Field::Absent => Field::Absent,
            Field::Wrong => Field::Wrong,
            Field::Given(at) => Field::Given(At {
                value: change(at.value),
                span: at.span,
            }),
        }
    }
}

/// Why a text is not what is wanted, and what to write in its place.
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) help: String,
    /// The byte of the text that is wrong, where it is one.
    pub(crate) byte: Option<usize>,
}

impl Refusal {
    pub(crate) fn new(message: impl Into<String>, help: impl Into<String>) -> Refusal {
        Refusal {
            message: message.into(),
            help: help.into(),
            byte: None,
        }
    }
}

impl From<UnitError> for Refusal {
    fn from(error: UnitError) -> Refusal {
        Refusal::new(error.message(), error.help())
    }
}

/// A value of the file and where it is.
pub(crate) type Node<'t> = (Span, &'t DeValue<'t>);

/// One table of the file, being read.
pub(crate) struct Section<'t, 's> {
    table: &'t DeTable<'t>,
    /// Of the header, or of the whole inline table.
    pub(crate) span: Span,
    /// As in "[[disk]]"; empty for the file itself.
    title: &'static str,
    known: Vec<&'static str>,
    pub(crate) sink: &'s mut Sink,
}

impl<'t, 's> Section<'t, 's> {
    pub(crate) fn new(
        table: &'t DeTable<'t>,
        span: Span,
        title: &'static str,
        sink: &'s mut Sink,
    ) -> Section<'t, 's> {
        Section {
            table,
            span,
            title,
            known: Vec::new(),
            sink,
        }
    }

    /// The value of a key, which is known from now on.
    pub(crate) fn node(&mut self, key: &'static str) -> Option<Node<'t>> {
        self.known.push(key);
        self.table.get(key).map(node)
    }

    /// Where the key itself is written.
    pub(crate) fn key_span(&self, key: &str) -> Option<Span> {
        self.table
            .get_key_value(key)
            .map(|(key, _)| key.span().into())
    }

    pub(crate) fn text(&mut self, key: &'static str, expected: &str) -> Field<&'t str> {
        match self.node(key) {
            None => Field::Absent,
            Some((span, DeValue::String(text))) => Field::Given(At::new(text, span)),
            Some(other) => self.wrong_type(key, other, expected),
        }
    }

    /// A text that `parse` makes something of.
    pub(crate) fn parsed<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Field<T> {
        let at = match self.text(key, expected) {
            Field::Absent => return Field::Absent,
            Field::Wrong => return Field::Wrong,
            Field::Given(at) => at,
        };
        match parse(at.value) {
            Ok(value) => Field::Given(At {
                value,
                span: at.span,
            }),
            Err(refusal) => self.refuse(at.span, expected, refusal),
        }
    }

    pub(crate) fn boolean(&mut self, key: &'static str) -> Field<bool> {
        match self.node(key) {
            None => Field::Absent,
            Some((span, DeValue::Boolean(value))) => Field::Given(At::new(*value, span)),
            Some(other) => self.wrong_type(key, other, "`true` or `false`"),
        }
    }

    pub(crate) fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Field<u64> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        match self.node(key) {
            None => Field::Absent,
            Some((span, value @ DeValue::Integer(_))) => match unsigned(value) {
                Some(value) if range.contains(&value) => Field::Given(At::new(value, span)),
                _ => self.out_of_range(key, span, &expected),
            },
            Some(other) => self.wrong_type(key, other, &expected),
        }
    }

    /// One of several words.
    pub(crate) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Field<T> {
        let words = one_of(choices.iter().map(|(word, _)| *word));
        self.parsed(key, &words, |text| {
            let found = choices.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let near = nearest(text, choices.iter().map(|(word, _)| *word));
                let help = near.map(|near| format!("did you mean \"{near}\"?"));
                let message = format!("`{key}` cannot be {}", quoted(text));
                Refusal::new(message, help.unwrap_or_default())
            })
        })
    }

    /// A size in human units, or a number of bytes.
    pub(crate) fn size(&mut self, key: &'static str, range: RangeInclusive<Size>) -> Field<Size> {
        let expected = format!("a size from {} to {}", range.start(), range.end());
        self.size_expecting(key, range, &expected)
    }

    /// A size; `expected` says which.
    pub(crate) fn size_expecting(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Size>,
        expected: &str,
    ) -> Field<Size> {
        let (span, size) = match self.node(key) {
            None => return Field::Absent,
            Some((span, DeValue::String(text))) => match text.parse::<Size>() {
                Ok(size) => (span, Some(size)),
                Err(error) => return self.refuse(Some(span), expected, error.into()),
            },
            Some((span, value @ DeValue::Integer(_))) => {
                (span, unsigned(value).map(Size::from_bytes))
            }
            Some(other) => return self.wrong_type(key, other, expected),
        };
        match size {
            Some(size) if range.contains(&size) => Field::Given(At::new(size, span)),
            _ => self.out_of_range(key, span, expected),
        }
    }

    /// A length of time within a range.
    pub(crate) fn time(
        &mut self,
        key: &'static str,
        range: RangeInclusive<TimeSpan>,
    ) -> Field<TimeSpan> {
        let expected = format!("a time from {} to {}", range.start(), range.end());
        let read = self.parsed(key, &expected, |text| Ok(text.parse::<TimeSpan>()?));
        match read {
            Field::Given(At {
                value,
                span: Some(span),
            }) if !range.contains(&value) => self.out_of_range(key, span, &expected),
            read => read,
        }
    }

    /// The elements of an array.
    pub(crate) fn list(&mut self, key: &'static str, expected: &str) -> Field<Vec<Node<'t>>> {
        match self.node(key) {
            None => Field::Absent,
            Some((span, DeValue::Array(array))) => {
                Field::Given(At::new(array.iter().map(node).collect(), span))
            }
            Some(other) => self.wrong_type(key, other, expected),
        }
    }

    /// A table within this one.
    pub(crate) fn table(
        &mut self,
        key: &'static str,
        title: &'static str,
        example: &str,
    ) -> Option<Section<'t, '_>> {
        match self.node(key)? {
            (span, DeValue::Table(table)) => Some(Section::new(table, span, title, self.sink)),
            other => {
                let _: Field<()> = self.wrong_type(key, other, &format!("a table: {example}"));
                None
            }
        }
    }

    /// Each table of an array of tables (`[[key]]`), up to `count_max`, read by `read`.
    pub(crate) fn tables<T>(
        &mut self,
        key: &'static str,
        title: &'static str,
        count_max: usize,
        mut read: impl FnMut(Section<'t, '_>) -> T,
    ) -> Vec<T> {
        let Some((span, value)) = self.node(key) else {
            return Vec::new();
        };
        let DeValue::Array(array) = value else {
            let draft = Draft::error(format!("`{key}` is a list of tables"))
                .at(span, format!("expected `{title}`"));
            self.sink.push(draft.help(format!(
                "write `{title}` in double brackets: there can be several"
            )));
            return Vec::new();
        };
        if array.len() > count_max {
            let at = array
                .get(count_max)
                .map_or(span, |extra| extra.span().into());
            let label = format!("number {}: expected at most {count_max}", count_max + 1);
            self.sink.push(
                Draft::error(format!("{} times `{title}` is too many", array.len())).at(at, label),
            );
        }
        let mut items = Vec::new();
        for (span, value) in array.iter().take(count_max).map(node) {
            match value {
                DeValue::Table(table) => {
                    items.push(read(Section::new(table, span, title, self.sink)))
                }
                _ => {
                    let _: Field<()> = self.wrong_type(key, (span, value), "a table");
                }
            }
        }
        items
    }

    /// Says that a key which must be there is not.
    pub(crate) fn missing(&mut self, key: &str, example: &str) {
        let draft = Draft::error(format!("{} has no `{key}`", self.title))
            .at(self.span, format!("`{key}` is missing"))
            .help(format!("add `{example}`"))
            .by_absence();
        self.sink.push(draft);
    }

    /// The end of this table: whatever key nobody asked for is unknown.
    pub(crate) fn finish(self) {
        self.finish_with(|_| None);
    }

    /// The same, where some unknown keys have a place elsewhere: `elsewhere` names it.
    pub(crate) fn finish_with(self, elsewhere: impl Fn(&str) -> Option<&'static str>) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) || self.sink.is_full() {
                continue;
            }
            let place = if self.title.is_empty() {
                String::new()
            } else {
                format!(" in {}", self.title)
            };
            let here = if self.title.is_empty() {
                "the file"
            } else {
                self.title
            };
            let near = nearest(name, self.known.iter().copied());
            let help = match (elsewhere(name), near) {
                (Some(table), _) => format!("`{name}` belongs below {table}"),
                (None, Some(near)) => format!("did you mean `{near}`?"),
                (None, None) => format!(
                    "the keys of {here} are {}",
                    listed(self.known.iter().copied())
                ),
            };
            let draft = Draft::error(format!("unknown key {}{place}", quoted(name)))
                .at(Span::from(key.span()), format!("not a key of {here}"))
                .help(help);
            self.sink.push(draft);
        }
    }

    fn wrong_type<T>(&mut self, key: &str, (span, value): Node<'t>, expected: &str) -> Field<T> {
        let what = if self.sink.not_a_text(span) {
            "this"
        } else {
            type_in_words(value)
        };
        let mut draft = Draft::error(format!("`{key}` cannot be {what}"))
            .at(span, format!("expected {expected}"));
        draft = match value {
            DeValue::String(text) if unquoted_would_do(text) && !expected.contains('"') => {
                draft.help(format!("write it without quotes: {text}"))
            }
            _ => draft,
        };
        self.sink.push(draft);
        Field::Wrong
    }

    fn out_of_range<T>(&mut self, key: &str, span: Span, expected: &str) -> Field<T> {
        let draft = Draft::error(format!("`{key}` is out of range"))
            .at(span, format!("expected {expected}"));
        self.sink.push(draft);
        Field::Wrong
    }

    pub(crate) fn refuse<T>(
        &mut self,
        span: Option<Span>,
        expected: &str,
        refusal: Refusal,
    ) -> Field<T> {
        let byte = refusal.byte.zip(span);
        let exact = byte.and_then(|(byte, span)| within(self.sink.text(), span, byte));
        let draft = Draft::error(refusal.message)
            .at(exact.or(span), format!("expected {expected}"))
            .help(refusal.help);
        self.sink.push(draft);
        Field::Wrong
    }

    /// An element of a list that is not a text where it has to be.
    pub(crate) fn element_text(
        &mut self,
        key: &str,
        node: Node<'t>,
        expected: &str,
    ) -> Field<&'t str> {
        match node {
            (span, DeValue::String(text)) => Field::Given(At::new(text, span)),
            other => self.wrong_type(key, other, expected),
        }
    }

    /// An element of a list that is not a number within a range where it has to be.
    pub(crate) fn element_integer(
        &mut self,
        key: &str,
        node: Node<'t>,
        range: RangeInclusive<u64>,
    ) -> Field<u64> {
        let expected = format!("numbers from {} to {}", range.start(), range.end());
        match node {
            (span, value @ DeValue::Integer(_)) => match unsigned(value) {
                Some(value) if range.contains(&value) => Field::Given(At::new(value, span)),
                _ => self.out_of_range(key, span, &expected),
            },
            other => self.wrong_type(key, other, &expected),
        }
    }
}

/// "`a`, `b` or `c`".
pub(crate) fn one_of<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    joined(
        words
            .into_iter()
            .map(|word| format!("\"{word}\""))
            .collect(),
        "or",
    )
}

/// "`a`, `b` and `c`".
pub(crate) fn listed<D: Display>(words: impl IntoIterator<Item = D>) -> String {
    joined(
        words.into_iter().map(|word| format!("`{word}`")).collect(),
        "and",
    )
}

fn joined(words: Vec<String>, last: &str) -> String {
    match words.split_last() {
        Some((end, rest)) if !rest.is_empty() => format!("{} {last} {end}", rest.join(", ")),
        Some((end, _)) => end.clone(),
        None => String::new(),
    }
}

fn node<'t>(spanned: &'t Spanned<DeValue<'t>>) -> Node<'t> {
    (spanned.span().into(), spanned.get_ref())
}

/// From a byte of a text to its end, in the source; `None` where the text is written otherwise
/// than it reads.
fn within(source: &str, span: Span, byte: usize) -> Option<Span> {
    let written = source.get(span.start..span.end)?;
    let quote = usize::from(written.starts_with(['"', '\'']));
    if written.contains('\\') || written.starts_with("\"\"\"") || written.starts_with("'''") {
        return None;
    }
    let start = span.start + quote + byte;
    let end = span.end - quote;
    (start <= end).then_some(Span { start, end })
}

fn unsigned(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn unquoted_would_do(text: &str) -> bool {
    text == "true"
        || text == "false"
        || (!text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit()))
}

fn type_in_words(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "`true` or `false`",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
