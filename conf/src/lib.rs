//! The configuration of a corebay appliance: a TOML file, or the options of the command line,
//! parsed once into an [`Appliance`] that cannot be wrong.
//!
//! The way of a file: `syntax` makes a document of the text, `schema` reads each value of it
//! by itself, `check` judges what needs two values or the machine. Each collects all mistakes it
//! finds as [`Diagnostic`]s and goes on; an [`Appliance`] comes out only where none is an error.
//! The options of the command line enter at `check`, so that both are held to the same rules.
//!
//! Invariants: parsing is a pure function of its text and of what [`Machine`] answers; no input
//! makes it panic, or take more memory than a fixed multiple of [`limits::FILE_BYTES_MAX`].
#![forbid(unsafe_code)]

pub mod appliance;
pub mod array_words;
mod brackets;
mod check;
pub mod diagnostic;
pub mod disk_spec;
pub mod limits;
mod local_machine;
pub mod machine;
pub mod options;
mod reader;
mod schema;
mod suggest;
mod syntax;
pub mod units;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

pub use appliance::{Appliance, BlockSize};
pub use corebay_nvme::spec::nqn::Nqn;
pub use diagnostic::{Diagnostic, Severity, render_all};
pub use disk_spec::{DiskSpec, DiskSpecKind};
pub use local_machine::LocalMachine;
pub use machine::Machine;
pub use options::Options;
pub use units::{Size, TimeSpan};

use diagnostic::{Sink, Source};

/// An appliance and what was noticed about it, or why there is none.
pub type Outcome = Result<(Appliance, Vec<Diagnostic>), Vec<Diagnostic>>;

/// Parses and checks a configuration: the appliance with the warnings, or all that is wrong.
///
/// `origin` is what diagnostics call the text: its path.
///
/// # Errors
/// Every mistake that could be found; at least one of them is [`Severity::Error`].
pub fn parse(text: &str, origin: &str, machine: &dyn Machine) -> Outcome {
    if text.len() > limits::FILE_BYTES_MAX {
        return Err(vec![too_long(origin)]);
    }
    let mut sink = Sink::new(Source::new(origin, text));
    let document = syntax::parse(text, &mut sink);
    let mut raw = schema::read(&document, &mut sink);
    raw.add_kept(machine);
    let appliance = check::check(raw, machine, &mut sink);
    for span in sink.take_unquoted() {
        sink.push(syntax::unquoted(text, span));
    }
    finish(appliance, sink)
}

/// Reads, parses and checks the configuration file at `path`.
///
/// # Errors
/// Every mistake that could be found, or that the file cannot be read.
pub fn load(path: &Path, machine: &dyn Machine) -> Outcome {
    let origin = path.display().to_string();
    let unreadable = |why: String| {
        let message = format!("the configuration cannot be read: {why}");
        Err(vec![Diagnostic::about(
            &Source::new(&origin, ""),
            Severity::Error,
            message,
        )])
    };
    let mut bytes = Vec::new();
    let bound = limits::FILE_BYTES_MAX as u64 + 1;
    let read = std::fs::File::open(path).and_then(|file| file.take(bound).read_to_end(&mut bytes));
    if let Err(error) = read {
        return unreadable(match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        });
    }
    if bytes.len() > limits::FILE_BYTES_MAX {
        return Err(vec![too_long(&origin)]);
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text, &origin, machine),
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            unreadable(format!("line {line} is not UTF-8 text"))
        }
    }
}

fn too_long(origin: &str) -> Diagnostic {
    let bound = Size::from_bytes(limits::FILE_BYTES_MAX as u64);
    let message = format!("the configuration is longer than {bound}");
    Diagnostic::about(&Source::new(origin, ""), Severity::Error, message)
}

fn finish(appliance: Option<Appliance>, sink: Sink) -> Outcome {
    let source = sink.source();
    let (mut diagnostics, no_errors) = sink.finish();
    match appliance {
        Some(appliance) if no_errors => Ok((appliance, diagnostics)),
        _ => {
            if no_errors {
                diagnostics.push(unexplained(&source));
            }
            Err(diagnostics)
        }
    }
}

/// A check failed without a word: a mistake of this crate, and no reason to start or to panic.
fn unexplained(source: &Arc<Source>) -> Diagnostic {
    debug_assert!(false, "a check failed without an error");
    let message = "the configuration was refused without a reason: this is a mistake of corebay";
    Diagnostic::about(source, Severity::Error, message)
}
