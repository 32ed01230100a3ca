//! `corebay doctor`: what the machine has and lacks for corebay, and the command that mends it.

mod checks;

use std::{path::Path, process::ExitCode};

use serde_json::{Value, json};

use super::Format;
use checks::{Finding, Grade, Machine};

/// What `corebay doctor` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit status is 1 where something is missing that NVMe drives in user space need. Files, memory
and kernel block devices need none of it.")]
pub struct Args {
    /// How the findings are printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Looks, and says what it found.
pub fn run(args: &Args) -> ExitCode {
    let machine = Machine {
        root: Path::new("/"),
        locked_memory_bytes: rustix::process::getrlimit(rustix::process::Resource::Memlock).current,
    };
    let findings = checks::all(&machine);
    match args.output {
        Format::Text => print!("{}", as_text(&findings)),
        Format::Json => println!("{:#}", as_json(&findings)),
    }
    match findings.iter().any(|found| found.grade == Grade::Missing) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Good => "good",
        Grade::Hint => "hint",
        Grade::Missing => "missing",
    }
}

fn as_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for found in findings {
        text += &format!("{:<8} {}: {}\n", word(found.grade), found.what, found.said);
        if let Some(mend) = &found.mend {
            text += &format!("{:<8}   {mend}\n", "");
        }
    }
    text
}

fn as_json(findings: &[Finding]) -> Value {
    let findings = findings.iter().map(|found| {
        json!({
            "what": found.what,
            "grade": word(found.grade),
            "said": found.said,
            "mend": found.mend,
        })
    });
    json!({ "findings": findings.collect::<Vec<_>>() })
}
