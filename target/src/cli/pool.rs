//! `corebay pool`: makes, shows, moves and checks the pools of a running appliance; checks a pool on a
//! file or device that nobody uses.

use std::{path::PathBuf, process::ExitCode};

use serde_json::{Value, json};

use super::{
    Failure, Format,
    client::{Asking, Client, word},
    table::Table,
    volume::size,
};
use crate::appliance;

/// What `corebay pool` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A pool lies on a disk or an array, which the configuration names and nobody else uses. It keeps its
volumes' names, identities and exports: released here (`export`) and imported elsewhere, it brings them
along.

Examples:
  corebay pool list
  corebay pool create fast --disk bay-3
  corebay pool check fast                       while it is used
  corebay pool check --offline /dev/nvme1n1     while nobody uses it
  corebay pool export fast                      releases it; hosts lose its volumes")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a pool on a blank disk or array
    Create {
        /// Its name
        pool: String,
        #[command(flatten)]
        on: On,
    },
    /// List the pools
    List,
    /// Say how a pool is
    Status {
        /// The pool; needed where there are several
        pool: Option<String>,
    },
    /// Open a pool that is on a disk or an array, and export what it says
    Import {
        /// Its name or its UUID
        pool: String,
        #[command(flatten)]
        on: On,
        /// Take it from a machine that has not released it, and certainly does not use it any more
        #[arg(long)]
        force: bool,
    },
    /// Let a pool take the rest of its disk or array, which has grown
    Extend {
        /// The pool
        pool: String,
    },
    /// Give a pool another name
    Rename {
        /// The pool
        pool: String,
        /// Its name from then on
        name: String,
    },
    /// Release a pool, so that another machine may import it; hosts lose its volumes. One that is not
    /// available is forgotten
    Export {
        /// The pool
        pool: String,
    },
    /// Destroy a pool, with all that is in it; also one that cannot be opened
    Destroy {
        /// The pool
        pool: String,
        /// Also where it has volumes
        #[arg(long)]
        force: bool,
    },
    /// Look at all of a pool's books, and say what is wrong with them
    Check {
        /// The pool, of a running appliance; needed where there are several
        #[arg(conflicts_with = "offline")]
        pool: Option<String>,
        /// A file or a device that nobody uses; nothing is written
        #[arg(long, value_name = "PATH")]
        offline: Option<PathBuf>,
    },
}

/// What a pool lies on.
#[derive(Debug, clap::Args)]
struct On {
    /// The disk or array, as the configuration calls it
    #[arg(long, value_name = "NAME")]
    disk: String,
    /// At so many percent in use, operator and hosts are warned [default: as the pool keeps it, or 80]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(3..=100))]
    warn_at: Option<u8>,
    /// At so many percent that is urgent [default: as the pool keeps it, or 95]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(3..=100))]
    critical_at: Option<u8>,
}

impl On {
    fn params(&self, pool: &str) -> Value {
        json!({
            "pool": pool,
            "disk": self.disk,
            "warn_at": self.warn_at,
            "critical_at": self.critical_at,
        })
    }
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    match act(args) {
        Ok(status) => status,
        Err(failure) => failure.report_as(args.asking.output, "pool"),
    }
}

fn act(args: &Args) -> Result<ExitCode, Failure> {
    let result = match &args.action {
        Action::Check {
            offline: Some(path),
            ..
        } => appliance::check_pool(path)?,
        action => {
            let (method, params) = request(action);
            let mut client = match action {
                Action::Check { .. } => Client::connect_for_work(&args.asking)?,
                _ => Client::connect(&args.asking)?,
            };
            client.call(&format!("pool.{method}"), &params)?
        }
    };
    match (args.asking.output, &args.action) {
        (Format::Json, _) => println!("{result:#}"),
        (_, Action::List) => print!("{}", list(&result)),
        (_, Action::Check { .. }) => print!("{}", check(&result)),
        (_, Action::Export { .. } | Action::Destroy { .. }) => {
            println!("{} {}", word(&result["state"]), word(&result["pool"]));
        }
        _ => print!("{}", status(&result)),
    }
    let bad = matches!(args.action, Action::Check { .. }) && result["good"] != true;
    Ok(if bad {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn request(action: &Action) -> (&'static str, Value) {
    match action {
        Action::Create { pool, on } => ("create", on.params(pool)),
        Action::List => ("list", json!({})),
        Action::Status { pool } => ("status", json!({ "pool": pool })),
        Action::Import { pool, on, force } => {
            let mut params = on.params(pool);
            params["force"] = json!(force);
            ("import", params)
        }
        Action::Extend { pool } => ("extend", json!({ "pool": pool })),
        Action::Rename { pool, name } => ("rename", json!({ "from": pool, "name": name })),
        Action::Export { pool } => ("export", json!({ "pool": pool })),
        Action::Destroy { pool, force } => ("destroy", json!({ "pool": pool, "force": force })),
        Action::Check { pool, .. } => ("check", json!({ "pool": pool })),
    }
}

fn list(pools: &Value) -> String {
    let mut table = Table::new(&[
        "POOL",
        "ON",
        ">SIZE",
        ">FREE",
        ">USED",
        ">VOLUMES",
        ">SNAPSHOTS",
        "STATE",
    ]);
    for pool in pools.as_array().into_iter().flatten() {
        let open = is_open(pool);
        let count = |key: &str| {
            if open {
                word(&pool[key])
            } else {
                "-".to_owned()
            }
        };
        table.row(vec![
            word(&pool["name"]),
            word(&pool["disk"]),
            size(&pool["total_bytes"]),
            size(&pool["available_bytes"]),
            if open {
                format!("{}%", pool["used_percent"])
            } else {
                "-".to_owned()
            },
            count("volumes"),
            count("snapshots"),
            state(pool),
        ]);
    }
    table.to_string()
}

/// Else nothing is known of what is in it.
fn is_open(pool: &Value) -> bool {
    pool["state"] != "unavailable" && pool["state"] != "opening"
}

fn state(pool: &Value) -> String {
    let state = word(&pool["state"]);
    match pool["level"].as_str() {
        None | Some("normal") => state,
        Some("full") => format!("{state}, full"),
        Some(level) => format!("{state}, space: {level}"),
    }
}

fn status(pool: &Value) -> String {
    let mut text = format!(
        "{}: {}, on {}\n  uuid {}\n",
        word(&pool["name"]),
        state(pool),
        word(&pool["disk"]),
        word(&pool["uuid"])
    );
    if let Some(problem) = pool["problem"].as_str() {
        text += &format!("  {problem}\n");
    }
    if !is_open(pool) {
        return text;
    }
    text += &format!(
        "  {} in all, {} may still be taken ({}% used), {} reserved, {} provisioned\n",
        size(&pool["total_bytes"]),
        size(&pool["available_bytes"]),
        pool["used_percent"],
        size(&pool["reserved_bytes"]),
        size(&pool["provisioned_bytes"]),
    );
    text += &format!(
        "  warns at {}%, urgent at {}%\n  {} volumes, {} snapshots, {} being deleted\n",
        pool["warn_at"], pool["critical_at"], pool["volumes"], pool["snapshots"], pool["deleting"],
    );
    if pool["journal"] == "zone" {
        text += "  its journal is in the array's mirrored zone\n";
    }
    if pool["repairs"].as_u64() > Some(0) {
        text += &format!(
            "  {} copies of its metadata were written again since it was opened\n",
            pool["repairs"]
        );
    }
    text
}

fn check(report: &Value) -> String {
    let mut text = format!(
        "{} volumes and snapshots, {} pages, {} extents in use\n",
        report["volumes"], report["pages"], report["extents"]
    );
    if report["damaged_copies"] != 0 {
        text += &format!(
            "{} damaged copies, whose twins are good\n",
            report["damaged_copies"]
        );
    }
    for problem in report["problems"].as_array().into_iter().flatten() {
        text += &format!("wrong: {}\n", word(problem));
    }
    if report["more_problems"] != 0 {
        text += &format!("and {} more\n", report["more_problems"]);
    }
    if report["good"] == true {
        text += "good\n";
    }
    text
}
