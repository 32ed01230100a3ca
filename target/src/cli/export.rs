//! `corebay export`: which volumes hosts see, and who may.

use std::process::ExitCode;

use corebay_conf::Nqn;
use serde_json::{Value, json};

use super::{
    Failure, Format,
    client::{Asking, Client, word},
    table::Table,
    volume::full_name,
};

/// What `corebay export` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Where nothing is said, a volume is exported in the appliance's only subsystem; where hosts are named, or
there are several subsystems, in one of its own. Exports are kept in the pool: they come back with it
after a restart, and on another machine.

Examples:
  corebay export add vm-1
  corebay export add vm-2 --host nqn.2014-08.org.nvmexpress:uuid:4c4c4544-0033-4b10-8056-b7c04f4a5131
  corebay export remove vm-2 --host NQN      the last host's removal ends the export
  corebay export list")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show a volume or a snapshot to hosts, or to more of them
    Add {
        /// The volume
        volume: String,
        #[command(flatten)]
        wish: Wish,
    },
    /// List what hosts see
    List {
        /// Only this pool's
        pool: Option<String>,
    },
    /// Take a volume from hosts, or from some of them
    Remove {
        /// The volume
        volume: String,
        /// Only from this host; repeatable
        #[arg(long = "host", value_name = "NQN")]
        hosts: Vec<Nqn>,
    },
}

/// How a volume is to be exported.
#[derive(Debug, clap::Args)]
pub struct Wish {
    /// The subsystem's NQN
    #[arg(long, value_name = "NQN")]
    subsystem: Option<Nqn>,
    /// The namespace's number in it [default: the lowest that is free]
    #[arg(long)]
    nsid: Option<u32>,
    /// A host that may connect; repeatable
    #[arg(long = "host", value_name = "NQN")]
    hosts: Vec<Nqn>,
    /// Every host may connect
    #[arg(long)]
    allow_any_host: bool,
}

impl Wish {
    /// True where anything is said.
    pub fn says_something(&self) -> bool {
        let named = self.subsystem.is_some() || self.nsid.is_some();
        named || !self.hosts.is_empty() || self.allow_any_host
    }

    /// As the control socket takes it.
    pub fn params(&self) -> Value {
        json!({
            "subsystem": self.subsystem.as_ref().map(Nqn::as_str),
            "nsid": self.nsid,
            "hosts": texts(&self.hosts),
            "allow_any_host": self.allow_any_host,
        })
    }
}

fn texts(hosts: &[Nqn]) -> Vec<&str> {
    hosts.iter().map(Nqn::as_str).collect()
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    match act(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report_as(args.asking.output, "export"),
    }
}

fn act(args: &Args) -> Result<(), Failure> {
    let (method, params) = match &args.action {
        Action::Add { volume, wish } => {
            ("add", json!({ "volume": volume, "export": wish.params() }))
        }
        Action::List { pool } => ("list", json!({ "pool": pool })),
        Action::Remove { volume, hosts } => {
            ("remove", json!({ "volume": volume, "hosts": texts(hosts) }))
        }
    };
    let mut client = Client::connect(&args.asking)?;
    let result = client.call(&format!("export.{method}"), &params)?;
    match (args.asking.output, &args.action) {
        (Format::Json, _) => println!("{result:#}"),
        (_, Action::List { .. }) => print!("{}", list(&result)),
        (_, Action::Add { .. } | Action::Remove { .. }) => match result["export"].is_null() {
            true => println!("{} is not exported", full_name(&result)),
            false => println!("{} is {}", full_name(&result), in_short(&result["export"])),
        },
    }
    Ok(())
}

/// An export in a few words.
pub fn in_short(export: &Value) -> String {
    if export.is_null() {
        return "-".to_owned();
    }
    let hidden = if export["shown"] == true {
        ""
    } else {
        " (not shown)"
    };
    format!(
        "namespace {} of {}{hidden}",
        word(&export["nsid"]),
        word(&export["subsystem"])
    )
}

fn list(exports: &Value) -> String {
    let mut table = Table::new(&["VOLUME", "SUBSYSTEM", ">NSID", "HOSTS", "STATE"]);
    for export in exports.as_array().into_iter().flatten() {
        let hosts = match (&export["allow_any_host"], export["hosts"].as_array()) {
            (Value::Bool(true), _) => "any".to_owned(),
            (_, Some(hosts)) if !hosts.is_empty() => {
                let hosts: Vec<String> = hosts.iter().map(word).collect();
                hosts.join(",")
            }
            _ => "the configuration's".to_owned(),
        };
        let shown = export["shown"] == true;
        table.row(vec![
            format!("{}/{}", word(&export["pool"]), word(&export["volume"])),
            word(&export["subsystem"]),
            word(&export["nsid"]),
            hosts,
            if shown { "shown" } else { "not shown" }.to_owned(),
        ]);
    }
    table.to_string()
}
