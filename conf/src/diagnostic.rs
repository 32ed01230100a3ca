//! What is wrong with a configuration, shown to the person who wrote it: file, line, caret, what
//! was expected, and how to mend it.
//!
//! Invariants: a span lies within its source on character borders; a diagnostic carries the text
//! it speaks of, so that it can be shown by itself; rendering costs what is shown, not what the
//! file holds.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::limits::DIAGNOSTICS_MAX;
use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{Annotation, AnnotationKind, Element, Level, Origin, Renderer, Snippet};

/// Bytes from one span to another that are still shown as one excerpt.
const EXCERPT_BYTES_MAX: usize = 16 << 10;
/// A longer line is named, but not shown.
const LINE_BYTES_MAX: usize = 1 << 10;

/// Whether the appliance can be started in spite of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It starts, but this is probably not what was meant.
    Warning,
    /// It cannot be started.
    Error,
}

/// A range of bytes of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Span {
        Span {
            start: range.start,
            end: range.end,
        }
    }
}

/// A text that diagnostics speak of, and what it is called.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    origin: String,
    text: String,
}

impl Source {
    /// A text and its name: the file's path, or "command line".
    pub fn new(origin: &str, text: &str) -> Arc<Source> {
        Arc::new(Source {
            origin: origin.to_owned(),
            text: text.to_owned(),
        })
    }

    /// What the text is called.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The span on character borders within the text, and on one line.
    fn clamp(&self, span: Span) -> Span {
        let border = |at: usize| {
            (0..=at.min(self.text.len()))
                .rev()
                .find(|at| self.text.is_char_boundary(*at))
        };
        let start = border(span.start).unwrap_or(0);
        let end = border(span.end).unwrap_or(0).max(start);
        let line_end = self.text[start..end]
            .find(['\n', '\r'])
            .map_or(end, |length| start + length);
        Span {
            start,
            end: line_end,
        }
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    fn line_end(&self, at: usize) -> usize {
        self.text[at..]
            .find('\n')
            .map_or(self.text.len(), |length| at + length)
    }

    fn line_number(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
    }
}

/// One thing that is wrong, or probably not what was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnostic {
    /// Whether the appliance can be started in spite of it.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// Where; `None`: in the whole file.
    pub span: Option<Span>,
    /// What to say at the caret: what was expected, or what is there. May be empty.
    pub label: String,
    /// Other places that belong to it, such as the first of two that are the same.
    pub related: Vec<(Span, String)>,
    /// How to mend it. May be empty.
    pub help: String,
    /// The text that the spans point into.
    pub source: Arc<Source>,
}

impl Diagnostic {
    /// A diagnostic about a source as a whole.
    pub fn about(
        source: &Arc<Source>,
        severity: Severity,
        message: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic {
            severity,
            message: message.into(),
            span: None,
            label: String::new(),
            related: Vec::new(),
            help: String::new(),
            source: Arc::clone(source),
        }
    }

    /// Line and column (of characters), from 1; `None` where it is about the whole file.
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        let at = self.span?.start;
        let text = &self.source.text;
        let column = text[self.source.line_start(at)..at].chars().count() + 1;
        Some((self.source.line_number(at), column))
    }

    /// The diagnostic in the style of rustc, without a newline at the end; `colour` with the
    /// escape sequences of a terminal.
    pub fn render(&self, colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut elements: Vec<Element<'_>> = Vec::new();
        match self.span {
            Some(span) => self.excerpts(span, &mut elements),
            None => elements.push(Origin::path(self.source.origin.as_str()).into()),
        }
        if !self.help.is_empty() {
            elements.push(Level::HELP.message(self.help.as_str()).into());
        }
        let group = level
            .primary_title(self.message.as_str())
            .elements(elements);
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        renderer.decor_style(DecorStyle::Ascii).render(&[group])
    }

    /// One excerpt for the caret and what is near to it, and one for each other place.
    fn excerpts<'d>(&'d self, span: Span, elements: &mut Vec<Element<'d>>) {
        let primary = annotation(AnnotationKind::Primary, span, &self.label);
        let mut window = span;
        let mut near = vec![primary];
        let mut far = Vec::new();
        for (other, label) in &self.related {
            let joined = Span {
                start: window.start.min(other.start),
                end: window.end.max(other.end),
            };
            let context = annotation(AnnotationKind::Context, *other, label);
            if joined.end - joined.start <= EXCERPT_BYTES_MAX {
                window = joined;
                near.push(context);
            } else {
                far.push((*other, context));
            }
        }
        elements.push(self.excerpt(window, span, near));
        for (other, context) in far {
            elements.push(self.excerpt(other, other, vec![context]));
        }
    }

    /// The lines of `window`; only file, line and column where they are too long to show.
    fn excerpt<'d>(&'d self, window: Span, at: Span, marks: Vec<Marked<'d>>) -> Element<'d> {
        let source = &*self.source;
        let start = source.line_start(window.start);
        let end = source.line_end(window.end);
        let line_start = source.line_number(start);
        let text = &source.text[start..end];
        if text.lines().any(|line| line.len() > LINE_BYTES_MAX) {
            let column = source.text[source.line_start(at.start)..at.start]
                .chars()
                .count()
                + 1;
            return Origin::path(source.origin.as_str())
                .line(source.line_number(at.start))
                .char_column(column)
                .into();
        }
        let marks = marks.into_iter().map(|mark| {
            mark.kind
                .span(mark.span.start - start..mark.span.end - start)
                .label(mark.label)
        });
        Snippet::source(text)
            .line_start(line_start)
            .path(source.origin.as_str())
            .annotations(marks.collect::<Vec<Annotation<'_>>>())
            .into()
    }
}

struct Marked<'d> {
    kind: AnnotationKind,
    span: Span,
    label: Option<&'d str>,
}

fn annotation(kind: AnnotationKind, span: Span, label: &str) -> Marked<'_> {
    Marked {
        kind,
        span,
        label: (!label.is_empty()).then_some(label),
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.render(false))
    }
}

/// All diagnostics one below the other, and a last line that counts them.
pub fn render_all(diagnostics: &[Diagnostic], colour: bool) -> String {
    let mut shown = String::new();
    for diagnostic in diagnostics {
        shown.push_str(&diagnostic.render(colour));
        shown.push_str("\n\n");
    }
    let count = |severity| {
        diagnostics
            .iter()
            .filter(|d| d.severity == severity)
            .count()
    };
    let plural = |count: usize, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(format!("{count} {what}s")),
    };
    let errors = plural(count(Severity::Error), "error");
    let warnings = plural(count(Severity::Warning), "warning");
    let counts: Vec<String> = errors.into_iter().chain(warnings).collect();
    if let Some(first) = diagnostics.first() {
        shown.push_str(&format!("{}: {}\n", first.source.origin, counts.join(", ")));
    }
    shown
}

/// A diagnostic in the making: it has no source yet.
pub(crate) struct Draft {
    severity: Severity,
    message: String,
    span: Option<Span>,
    label: String,
    related: Vec<(Span, String)>,
    help: String,
    by_absence: bool,
}

impl Draft {
    pub(crate) fn error(message: impl Into<String>) -> Draft {
        Draft {
            severity: Severity::Error,
            message: message.into(),
            span: None,
            label: String::new(),
            related: Vec::new(),
            help: String::new(),
            by_absence: false,
        }
    }

    pub(crate) fn warning(message: impl Into<String>) -> Draft {
        Draft {
            severity: Severity::Warning,
            ..Draft::error(message)
        }
    }

    pub(crate) fn at(mut self, span: impl Into<Option<Span>>, label: impl Into<String>) -> Draft {
        self.span = span.into();
        self.label = label.into();
        self
    }

    /// Another place that belongs to it; nothing where that is a default, and so nowhere.
    pub(crate) fn and_at(
        mut self,
        span: impl Into<Option<Span>>,
        label: impl Into<String>,
    ) -> Draft {
        self.related
            .extend(span.into().map(|span| (span, label.into())));
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Draft {
        self.help = help.into();
        self
    }

    /// It says that something is not there: worth nothing where a part could not be read.
    pub(crate) fn by_absence(mut self) -> Draft {
        self.by_absence = true;
        self
    }
}

/// Collects the diagnostics of one source, up to a bound.
pub(crate) struct Sink {
    source: Arc<Source>,
    diagnostics: Vec<Diagnostic>,
    errors: usize,
    warnings: usize,
    /// Ranges that could not be read; what is said about them is a consequence of that.
    unread: Vec<Span>,
    /// Whole lines could not be read: that something is missing means nothing.
    incomplete: bool,
    /// Texts without quotes, in the order of the file.
    unquoted: Vec<Span>,
}

impl Sink {
    pub(crate) fn new(source: Arc<Source>) -> Sink {
        Sink {
            source,
            diagnostics: Vec::new(),
            errors: 0,
            warnings: 0,
            unread: Vec::new(),
            incomplete: false,
            unquoted: Vec::new(),
        }
    }

    /// No more errors are kept: what is costly to say need not be found out.
    pub(crate) fn is_full(&self) -> bool {
        self.errors >= DIAGNOSTICS_MAX
    }

    /// From here on nothing is said about this range, nor that anything is missing.
    pub(crate) fn unread(&mut self, span: Span) {
        self.unread.push(span);
        self.incomplete = true;
    }

    /// From here on nothing is said about this range, which is one value of a key.
    pub(crate) fn unread_value(&mut self, span: Span) {
        self.unread.push(span);
    }

    /// There is a text without quotes.
    pub(crate) fn unquoted(&mut self, span: Span) {
        self.unquoted.push(span);
    }

    /// What was taken for a text without quotes is none; whether there was one.
    pub(crate) fn not_a_text(&mut self, span: Span) -> bool {
        let found = self.unquoted.iter().position(|unquoted| *unquoted == span);
        found.map(|at| self.unquoted.remove(at)).is_some()
    }

    /// The texts without quotes that are still to be spoken of.
    pub(crate) fn take_unquoted(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.unquoted)
    }

    /// The text that the spans point into.
    pub(crate) fn text(&self) -> &str {
        &self.source.text
    }

    /// The text that the spans point into, and its name.
    pub(crate) fn source(&self) -> Arc<Source> {
        Arc::clone(&self.source)
    }

    pub(crate) fn push(&mut self, draft: Draft) {
        let kept = match draft.severity {
            Severity::Error => self.errors,
            Severity::Warning => self.warnings,
        };
        let consequence = |span: Span| {
            self.unread
                .iter()
                .any(|range| range.start <= span.start && span.start < range.end)
        };
        // Beyond the bound it does not matter what is a consequence: there are errors enough.
        if kept < DIAGNOSTICS_MAX
            && (draft.by_absence && self.incomplete || draft.span.is_some_and(consequence))
        {
            return;
        }
        match draft.severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
        }
        if kept >= DIAGNOSTICS_MAX {
            return;
        }
        let clamp = |span| self.source.clamp(span);
        self.diagnostics.push(Diagnostic {
            severity: draft.severity,
            message: draft.message,
            span: draft.span.map(clamp),
            label: draft.label,
            related: draft
                .related
                .into_iter()
                .map(|(span, label)| (clamp(span), label))
                .collect(),
            help: draft.help,
            source: Arc::clone(&self.source),
        });
    }

    /// The diagnostics in the order of the file, and whether none of them was an error.
    pub(crate) fn finish(mut self) -> (Vec<Diagnostic>, bool) {
        self.diagnostics
            .sort_by_key(|diagnostic| diagnostic.span.map(|span| span.start));
        let counts = [
            (Severity::Error, self.errors),
            (Severity::Warning, self.warnings),
        ];
        for (severity, count) in counts
            .into_iter()
            .filter(|(_, count)| *count > DIAGNOSTICS_MAX)
        {
            let what = if severity == Severity::Error {
                "errors"
            } else {
                "warnings"
            };
            let message = format!("{} more {what} are not shown", count - DIAGNOSTICS_MAX);
            self.diagnostics
                .push(Diagnostic::about(&self.source, severity, message));
        }
        (self.diagnostics, self.errors == 0)
    }
}
