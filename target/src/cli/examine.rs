//! `corebay array examine`: what files and devices say of the array that they are members of. It reads
//! their superblocks (`raid/FORMAT.md`) and nothing else, writes nothing, and needs no appliance.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf};

use corebay_conf::array_words;
use corebay_raid::{
    geometry::SUPERBLOCK_OFFSETS,
    state::RoleState,
    superblock::{BadSuperblock, SUPERBLOCK_BYTES, Superblock},
};
use serde_json::{Value, json};

use super::{Failure, Format, client::word, table::Table};

/// What is said of one disk.
struct Found {
    path: String,
    copies: Vec<Result<Superblock, String>>,
}

impl Found {
    fn newest(&self) -> Option<&Superblock> {
        let good = self.copies.iter().flatten();
        good.max_by_key(|superblock| superblock.state.generation)
    }
}

/// Looks, and prints what was found.
///
/// # Errors
/// Names those that cannot be read, or are no members. What the others say is printed all the same.
pub fn run(paths: &[PathBuf], output: Format) -> Result<(), Failure> {
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for path in paths {
        match look(path) {
            Ok(one) => found.push(one),
            Err(failure) => failures.push(failure),
        }
    }
    let said: Vec<Value> = found.iter().map(|one| describe(one, &found)).collect();
    match output {
        _ if said.is_empty() => {}
        Format::Json => println!("{:#}", Value::Array(said)),
        Format::Text => print!("{}", text(&said)),
    }
    let others = found.iter().filter(|one| one.newest().is_none());
    failures.extend(
        others.map(|other| Failure::new(format!("{} is no member of an array", other.path), "")),
    );
    Failure::all(failures).map_or(Ok(()), Err)
}

/// What a file or device says of its array, where it can be read and says anything.
pub(super) fn says(path: &PathBuf) -> Option<Superblock> {
    look(path).ok()?.newest().cloned()
}

fn look(path: &PathBuf) -> Result<Found, Failure> {
    let name = path.display().to_string();
    let file = File::open(path);
    let file = file.map_err(|error| Failure::new(format!("{name}: {error}"), ""))?;
    let copies = SUPERBLOCK_OFFSETS.iter().map(|&offset| {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Superblock::decode(&bytes).map_err(|bad| bad.to_string()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(BadSuperblock::Absent.to_string())
            }
            Err(error) => Err(error.to_string()),
        }
    });
    let copies = copies.collect();
    Ok(Found { path: name, copies })
}

/// What a disk says, beside the others.
fn describe(one: &Found, all: &[Found]) -> Value {
    let copies: Vec<Value> = one
        .copies
        .iter()
        .map(|copy| match copy {
            Ok(good) => json!({ "generation": good.state.generation }),
            Err(why) => json!({ "bad": why }),
        })
        .collect();
    let Some(own) = one.newest() else {
        return json!({ "path": one.path, "copies": copies });
    };
    let newest = all.iter().filter_map(Found::newest);
    let newest = newest.filter(|other| other.array == own.array);
    let newest = newest
        .max_by_key(|other| other.state.generation)
        .unwrap_or(own);
    let wish = own.geometry.wish();
    let (level, code) = array_words::level_words(wish.level);
    json!({
        "path": one.path,
        "copies": copies,
        "array": own.array.to_string(),
        "name": String::from_utf8_lossy(&own.name),
        "member": own.member.to_string(),
        "level": level,
        "data": code.map(|(data, _)| data),
        "parity": code.map(|(_, parity)| parity),
        "roles": wish.roles,
        "strip_bytes": wish.strip_bytes,
        "zone_bytes": wish.zone_bytes,
        "block_bytes": wish.block_size.bytes(),
        "consistency": array_words::consistency_word(wish.consistency),
        "member_bytes": own.geometry.member_bytes(),
        "generation": own.state.generation,
        "newest_generation": newest.state.generation,
        "role": newest.state.role_of(own.member),
        "state": state(own, newest),
        "states": newest.state.roles.iter().map(|role| role_word(role.state)).collect::<Vec<_>>(),
    })
}

/// What a member is, by the newest superblock that was found of its array.
fn state(own: &Superblock, newest: &Superblock) -> String {
    match newest.state.role_of(own.member) {
        Some(role) => role_word(newest.state.roles[role].state),
        None if newest.state.spares.contains(&own.member) => "spare".to_owned(),
        None => "removed".to_owned(),
    }
}

fn role_word(state: RoleState) -> String {
    match state {
        RoleState::Active => "active".to_owned(),
        RoleState::Failed => "failed".to_owned(),
        RoleState::Rebuilding { stripes, delta } => {
            let what = if delta { "returning" } else { "rebuilding" };
            format!("{what}, {stripes} stripes")
        }
    }
}

fn text(disks: &[Value]) -> String {
    let heading = [
        "PATH",
        "ARRAY",
        "NAME",
        "LEVEL",
        ">ROLE",
        "STATE",
        ">GENERATION",
        "COPIES",
    ];
    let mut table = Table::new(&heading);
    for disk in disks {
        let copies = disk["copies"].as_array().into_iter().flatten();
        let copies = copies.map(|copy| copy["bad"].as_str().unwrap_or("good").to_owned());
        let level = match (disk["data"].as_u64(), disk["parity"].as_u64()) {
            (Some(data), Some(parity)) => format!("{} {data}+{parity}", word(&disk["level"])),
            _ => format!("{} of {}", word(&disk["level"]), word(&disk["roles"])),
        };
        let level = if disk["array"].is_null() {
            "-".to_owned()
        } else {
            level
        };
        table.row(vec![
            word(&disk["path"]),
            word(&disk["array"]),
            word(&disk["name"]),
            level,
            word(&disk["role"]),
            word(&disk["state"]),
            word(&disk["generation"]),
            copies.collect::<Vec<_>>().join(", "),
        ]);
    }
    table.to_string()
}
