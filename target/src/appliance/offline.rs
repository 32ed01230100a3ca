//! Arrays that are made without an appliance, of files and devices that nobody uses: as one that runs makes
//! them, but for what only it knows (`manage.rs`).

use std::{path::Path, rc::Rc};

use corebay_conf::BlockSize;
use corebay_core::{
    arena::{Arena, HUGEPAGE_BYTES, Hugepages},
    buffer::BufferPool,
    disk::file::{Caching, FileMedium, FileMediumOptions, default_block_size},
};
use serde_json::{Value, json};

use super::{
    arrays::{Finding, Named, run_here},
    control::RpcError,
    environment::PlainMedium,
    making::Making,
    manage::{WAITERS, Wanted},
};
use crate::cli::Failure;

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        Self::new(error.message, "")
    }
}

/// Makes the array that these parameters of `array.create` describe; its members are paths. `tell` is told
/// from time to time how far it is: the bytes that are done, of how many.
///
/// # Errors
/// Where one of them is used, holds something, or does not fit.
pub fn create_array(
    params: &Value,
    block_size: Option<BlockSize>,
    tell: impl Fn(u64, u64) + 'static,
) -> Result<Value, Failure> {
    let wanted = Wanted::parse(params)?;
    let open = |path: &String| open(path, block_size);
    let members: Vec<Named> = wanted.members.iter().map(open).collect::<Result<_, _>>()?;
    wanted.check(&members, &[])?;
    let (plan, name) = (wanted.plan, wanted.name);
    let bytes = plan.scratch_bytes().next_multiple_of(HUGEPAGE_BYTES);
    let no_memory = |why: String| Failure::new(format!("there is no memory: {why}"), "");
    let arena = Arena::new(bytes, Hugepages::Off);
    let mut arena = arena.map_err(|error| no_memory(error.to_string()))?;
    let region = arena.take(bytes);
    let region = region.ok_or_else(|| no_memory("the arena is too small".to_owned()))?;
    let pool = BufferPool::new(region, WAITERS);
    let finding = Finding {
        making: Making::new(&plan, members.iter().map(|disk| &disk.name)),
        plan,
        members: members
            .into_iter()
            .map(|disk| (disk.name, Some(disk.medium)))
            .collect(),
        spares: Vec::new(),
        others: Vec::new(),
        running: Vec::new(),
    };
    let own = pool.clone();
    let found = run_here(&pool, move |devices| async move {
        let (devices, finding) = (Rc::new(devices), Rc::new(finding));
        finding.make_alone(&devices, &own, tell).await
    })?;
    let assembled = found.assembled();
    let bytes = assembled.info().bytes();
    Ok(json!({ "array": name, "uuid": assembled.uuid().to_string(), "bytes": bytes }))
}

fn open(path: &String, block_size: Option<BlockSize>) -> Result<Named, Failure> {
    let file = Path::new(path);
    let options = FileMediumOptions {
        block_size: block_size.unwrap_or_else(|| default_block_size(file)),
        bytes: None,
        create: false,
        caching: Caching::Direct,
    };
    let medium = FileMedium::open(file, options).map_err(|error| {
        let help = "without --offline, the disks of a running appliance are named as its configuration \
                    names them";
        Failure::new(error.to_string(), help)
    })?;
    Ok(Named {
        name: path.clone(),
        medium: PlainMedium::File(medium),
    })
}
