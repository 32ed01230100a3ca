//! `corebay check`: says every mistake in a configuration file, and starts nothing.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use corebay_conf::{
    Appliance, Diagnostic, Severity,
    appliance::{Array, DiskKind},
    render_all,
};
use corebay_raid::geometry::Level;
use serde_json::json;

use crate::appliance::ThisMachine;

use super::{Format, examine};

/// What `corebay check` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The file is checked against this machine: its cores, its memory, its disks and addresses.
The exit status is 0 where `corebay serve --config FILE` would start, and 1 where it would not.

Examples:
  corebay check /etc/corebay/corebay.toml
  corebay check --output json corebay.toml | jq .diagnostics")]
pub struct Args {
    /// The configuration file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How the findings are printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Checks the file, and prints what there is to say.
pub fn run(args: &Args) -> ExitCode {
    let (appliance, diagnostics) = match corebay_conf::load(&args.file, &ThisMachine) {
        Ok((appliance, warnings)) => (Some(appliance), warnings),
        Err(diagnostics) => (None, diagnostics),
    };
    let arrays = appliance.iter().flat_map(Appliance::arrays);
    let others = arrays.filter_map(|array| is_another(appliance.as_ref()?, array));
    let others: Vec<String> = others.collect();
    let is_good = appliance.is_some() && others.is_empty();
    match args.output {
        Format::Text => {
            let colour = std::io::stderr().is_terminal();
            eprint!("{}", render_all(&diagnostics, colour));
            others.iter().for_each(|other| eprintln!("error: {other}"));
            if let Some(appliance) = appliance.filter(|_| is_good) {
                println!("{}: good: {}", args.file.display(), summary(&appliance));
            }
        }
        Format::Json => {
            let others = others.iter().map(|other| {
                json!({ "severity": "error", "message": other, "line": null, "column": null,
                        "label": null, "help": null })
            });
            let found: Vec<_> = diagnostics.iter().map(as_json).chain(others).collect();
            println!("{:#}", json!({ "good": is_good, "diagnostics": found }));
        }
    }
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A member of a configured array that says that it belongs to one of another kind: what is wrong.
fn is_another(appliance: &Appliance, array: &Array) -> Option<String> {
    if array.kept.is_some() {
        return None;
    }
    array.members.iter().find_map(|id| {
        let disk = appliance.disk(*id);
        let (DiskKind::File { path, .. } | DiskKind::Device { path }) = &disk.kind else {
            return None;
        };
        let said = examine::says(path)?;
        let has = said.geometry.wish();
        // Legs come and go while the appliance runs.
        let same_roles = has.roles == array.roles || has.level == Level::Mirrored;
        (has.level != array.level || !same_roles).then(|| {
            format!(
                "array \"{}\": the disk \"{}\" is a member of {} of {} members, the configuration says {} of {}",
                array.name, disk.name, has.level, has.roles, array.level, array.roles
            )
        })
    })
}

fn summary(appliance: &Appliance) -> String {
    let count = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let namespaces = appliance
        .subsystems()
        .iter()
        .map(|subsystem| subsystem.namespaces.len())
        .sum();
    [
        count(appliance.reactor().cores.len(), "core"),
        count(appliance.listeners().len(), "listener"),
        count(appliance.disks().len(), "disk"),
        count(appliance.arrays().len(), "array"),
        count(appliance.subsystems().len(), "subsystem"),
        count(namespaces, "namespace"),
    ]
    .join(", ")
}

fn as_json(diagnostic: &Diagnostic) -> serde_json::Value {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let place = diagnostic.line_and_column();
    json!({
        "severity": severity,
        "message": diagnostic.message,
        "line": place.map(|(line, _)| line),
        "column": place.map(|(_, column)| column),
        "label": diagnostic.label,
        "help": diagnostic.help,
    })
}
