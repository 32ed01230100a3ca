//! What a command of the tools failed with: a message, and how to mend it.

use std::{fmt, process::ExitCode};

/// Why a command failed. Printed as two lines: what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    message: String,
    help: String,
}

impl Failure {
    /// A failure; `help` says how to mend it, or is empty where nobody knows.
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: help.into(),
        }
    }

    /// The same failure, of this thing.
    pub fn of(self, what: &str) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    /// All of them as one; `None` where there are none.
    pub fn all(failures: Vec<Self>) -> Option<Self> {
        let mut failures = failures.into_iter();
        let first = failures.next()?;
        Some(failures.fold(first, |mut all, next| {
            all.message += &format!("\n{}", next.message);
            if all.help.is_empty() {
                all.help = next.help;
            }
            all
        }))
    }

    /// Prints it; gives the exit status.
    pub fn report(&self, command: &str) -> ExitCode {
        eprintln!("corebay {command}: {self}");
        ExitCode::FAILURE
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if !self.help.is_empty() {
            write!(f, "\n  help: {}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
