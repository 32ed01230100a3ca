//! Which drive, and which namespace of it, a configuration names.

use std::{path::Path, sync::Arc};

use corebay_conf::appliance::DriveName;
use corebay_nvme::{
    machine,
    pcie::{Drive, NamespaceInfo, Refusal},
    vfio::VfioRegisters,
};

use super::drives::Up;
use crate::cli::Failure;

/// The drives that are bound to vfio-pci.
pub fn lent(name: &DriveName) -> Result<Vec<String>, Failure> {
    let drives = machine::drives(Path::new("/"));
    if let DriveName::Serial(serial) = name {
        // The kernel knows the serial numbers of those that it drives itself.
        let known = drives
            .iter()
            .find(|drive| !drive.is_lent() && drive.serial.as_deref() == Some(serial.as_str()));
        if let Some(drive) = known {
            return Err(not_lent(&drive.address, drive.driver.as_deref()));
        }
    }
    let lent = drives.into_iter().filter(machine::MachineDrive::is_lent);
    Ok(lent.map(|drive| drive.address).collect())
}

/// The drive at this address is bound to vfio-pci.
pub fn check_lent(address: &str) -> Result<(), Failure> {
    let drives = machine::drives(Path::new("/"));
    match drives.iter().find(|drive| drive.address == address) {
        Some(drive) if drive.is_lent() => Ok(()),
        Some(drive) => Err(not_lent(address, drive.driver.as_deref())),
        None => Err(Failure::new(
            format!("there is no NVMe drive at {address}"),
            "`corebay drives` lists the drives",
        )),
    }
}

fn not_lent(address: &str, driver: Option<&str>) -> Failure {
    let of = driver.map_or_else(String::new, |driver| format!(", but to {driver}"));
    Failure::new(
        format!("the drive at {address} is not bound to vfio-pci{of}"),
        format!("`corebay drives bind {address}` takes it from the kernel"),
    )
}

/// True where a drive that is up is what is looked for.
pub fn is_served(up: &Up, name: &DriveName) -> bool {
    !up.drive.has_failed() && is_called(&up.drive, name)
}

/// True where a drive may be what is looked for.
pub fn is_called(drive: &Drive<VfioRegisters>, name: &DriveName) -> bool {
    match name {
        DriveName::Address(_) => true,
        DriveName::Serial(serial) => drive.info().serial == serial.as_str(),
        DriveName::Eui64(_) | DriveName::Nguid(_) => {
            let namespaces = drive.namespaces();
            let mut usable = namespaces.iter().flat_map(|known| &known.state);
            usable.any(|namespace| is_named(namespace, name))
        }
    }
}

fn is_named(namespace: &NamespaceInfo, name: &DriveName) -> bool {
    match name {
        DriveName::Eui64(eui64) => namespace.eui64 == eui64.bytes(),
        DriveName::Nguid(nguid) => namespace.nguid == nguid.bytes(),
        _ => true,
    }
}

/// The namespace that is meant; where none is said, there must be only one.
pub fn choose(
    drive: &Drive<VfioRegisters>,
    name: &DriveName,
    nsid: Option<u32>,
) -> Result<Arc<NamespaceInfo>, Failure> {
    let refused = |nsid: u32, why: &Refusal| {
        let message = format!(
            "namespace {nsid} of the drive at {}: {why}",
            drive.address()
        );
        Failure::new(message, "")
    };
    let namespaces = drive.namespaces();
    let meant: Vec<_> = namespaces
        .iter()
        .filter(|known| nsid.is_none_or(|nsid| known.nsid == nsid))
        .filter(|known| match &known.state {
            Ok(namespace) => is_named(namespace, name),
            Err(_) => matches!(name, DriveName::Address(_) | DriveName::Serial(_)),
        })
        .collect();
    match meant.as_slice() {
        [only] => only.state.clone().map_err(|why| refused(only.nsid, &why)),
        [] => Err(Failure::new(
            format!("the drive at {} has no such namespace", drive.address()),
            "its namespaces are formatted and attached by `nvme create-ns` and `nvme attach-ns`",
        )),
        several => {
            let nsids: Vec<String> = several.iter().map(|known| known.nsid.to_string()).collect();
            Err(Failure::new(
                format!(
                    "the drive at {} has several namespaces: {}",
                    drive.address(),
                    nsids.join(", ")
                ),
                "say which, as in nvme = { address = \"...\", nsid = 1 }",
            ))
        }
    }
}
