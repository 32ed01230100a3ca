//! What a discovery service offers: its log page, read so that no change goes unnoticed.

use std::rc::Rc;

use corebay_core::net::Network;
use zerocopy::FromBytes;

use super::{controller::Controller, error::Error, host::Host, options::ControllerOptions};
use crate::spec::{
    ascii,
    log::{DiscoveryLogEntry, DiscoveryLogHeader, lid},
    nqn,
};

/// How often a log page that changes while it is read is read again.
const ATTEMPTS_MAX: usize = 8;

/// The records that are read before a service is taken to be wrong.
const RECORDS_MAX: u64 = 16 << 10;

/// The bytes of the header and of each record.
const RECORD_BYTES: u64 = size_of::<DiscoveryLogEntry>() as u64;

const _: () = assert!(size_of::<DiscoveryLogHeader>() == size_of::<DiscoveryLogEntry>());

/// One generation of a discovery service's log page.
#[derive(Clone, Debug)]
pub struct DiscoveryLog {
    /// The generation: another one after every change.
    pub generation: u64,
    /// What is offered, in the service's order.
    pub records: Vec<DiscoveryRecord>,
}

/// One subsystem, or other discovery service, at one address.
#[derive(Clone, Debug)]
pub struct DiscoveryRecord {
    /// The record as it came.
    pub entry: DiscoveryLogEntry,
    /// The subsystem's NQN. What is not UTF-8 is replaced.
    pub subnqn: String,
    /// The transport address.
    pub traddr: String,
    /// The transport service: for TCP the port.
    pub trsvcid: String,
}

/// Connects to the discovery service that `options` name, reads its log page, and disconnects.
///
/// # Errors
/// As for [`Controller::connect`] and [`Controller::log_page`]; [`Error::Controller`] where the log
/// page is of another format or changes too often.
pub async fn discover<N: Network>(
    host: &Rc<Host<N>>,
    options: ControllerOptions,
) -> Result<DiscoveryLog, Error> {
    let controller = Controller::connect(host, options).await?;
    let log = controller.discovery_log().await?;
    // What was asked for is there: how the service ends is its own affair.
    let _ = controller.shutdown().await;
    Ok(log)
}

impl<N: Network> Controller<N> {
    /// Reads the discovery log page; again, where it changed meanwhile.
    ///
    /// # Errors
    /// As for [`discover`].
    pub async fn discovery_log(&self) -> Result<DiscoveryLog, Error> {
        let mut header = self.discovery_header().await?;
        for _ in 0..ATTEMPTS_MAX {
            if header.recfmt.get() != 0 {
                return Err(Error::Controller(
                    "the discovery log page has an unknown record format",
                ));
            }
            let count = header.numrec.get();
            if count > RECORDS_MAX {
                return Err(Error::Controller(
                    "the discovery log page has more than 16384 records",
                ));
            }
            let bytes = count * RECORD_BYTES;
            let page = self.log_page(lid::DISCOVERY, 0, RECORD_BYTES, bytes).await;
            let after = self.discovery_header().await?;
            if after.genctr == header.genctr && after.numrec == header.numrec {
                return Ok(DiscoveryLog {
                    generation: header.genctr.get(),
                    records: records(&page?),
                });
            }
            // Beyond the end of a log that has become shorter there is nothing to read.
            if let Err(error) = page
                && !matches!(error, Error::Status(_))
            {
                return Err(error);
            }
            header = after;
        }
        Err(Error::Controller(
            "the discovery log page changed each time it was read",
        ))
    }

    async fn discovery_header(&self) -> Result<DiscoveryLogHeader, Error> {
        self.log(lid::DISCOVERY, 0).await
    }
}

fn records(page: &[u8]) -> Vec<DiscoveryRecord> {
    page.chunks_exact(size_of::<DiscoveryLogEntry>())
        .filter_map(|bytes| DiscoveryLogEntry::read_from_bytes(bytes).ok())
        .map(|entry| DiscoveryRecord {
            subnqn: match nqn::field_text(&entry.subnqn) {
                Ok(text) => text.to_owned(),
                Err(_) => ascii::trim(&entry.subnqn),
            },
            traddr: ascii::trim(&entry.traddr),
            trsvcid: ascii::trim(&entry.trsvcid),
            entry,
        })
        .collect()
}
