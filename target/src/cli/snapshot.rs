//! `corebay snapshot`: volumes as they were at a point in time.

use std::process::ExitCode;

use serde_json::json;

use super::{
    Failure, Format,
    client::{Asking, Client, word},
    volume::{full_name, list},
};

/// What `corebay snapshot` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Snapshots that are made by one command are of one point in time. Any snapshot can be deleted, whatever
was made of it.

Examples:
  corebay snapshot create vm-1@monday
  corebay snapshot create db@monday log@monday     both at one point in time
  corebay snapshot delete vm-1@monday")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Take snapshots
    Create {
        /// Volume and name of each
        #[arg(value_name = "VOLUME@SNAPSHOT", required = true)]
        snapshots: Vec<String>,
    },
    /// List the snapshots
    List {
        /// Only this pool's
        pool: Option<String>,
    },
    /// Delete a snapshot; its space comes back in the background
    Delete {
        /// The snapshot
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: String,
        /// Take it from hosts first
        #[arg(long)]
        force: bool,
    },
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    match act(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report_as(args.asking.output, "snapshot"),
    }
}

fn act(args: &Args) -> Result<(), Failure> {
    let (method, params) = match &args.action {
        Action::Create { snapshots } => ("create", json!({ "snapshots": snapshots })),
        Action::List { pool } => ("list", json!({ "pool": pool })),
        Action::Delete { snapshot, force } => {
            ("delete", json!({ "snapshot": snapshot, "force": force }))
        }
    };
    let mut client = Client::connect(&args.asking)?;
    let result = client.call(&format!("snapshot.{method}"), &params)?;
    match (args.asking.output, &args.action) {
        (Format::Json, _) => println!("{result:#}"),
        (_, Action::List { .. } | Action::Create { .. }) => print!("{}", list(&result)),
        (_, Action::Delete { .. }) => {
            println!("{} {}", word(&result["state"]), full_name(&result));
        }
    }
    Ok(())
}
