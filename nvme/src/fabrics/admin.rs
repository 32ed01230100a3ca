//! What a host asks a controller: namespaces, log pages, features, properties.

use std::slice;

use corebay_core::net::Network;
use zerocopy::FromBytes;

use super::{association::whole, controller::Controller, error::Error, table::Data};
use crate::spec::{
    command::admin,
    fabrics::PropertySize,
    identify::{
        IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, NamespaceIdentifier, NamespaceList,
        cns, csi, decode_descriptors,
    },
    property::Csts,
};

/// The most of a log page that is read with one command.
const LOG_CHUNK_BYTES: usize = 4096;

/// The most bytes of a log page that are read at all.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// The namespaces that are listed before a controller is taken to repeat itself.
const NAMESPACES_MAX: usize = 1 << 16;

/// What a controller says about one namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its identifier.
    pub nsid: u32,
    /// The bytes of a logical block, metadata not counted.
    pub block_bytes: u32,
    /// The bytes of metadata that belong to a logical block.
    pub metadata_bytes: u16,
    /// Its logical blocks (NSZE).
    pub blocks: u64,
    /// Its globally unique identifiers.
    pub identifiers: Vec<NamespaceIdentifier>,
    /// Its Identify Namespace structure.
    pub identify: Box<IdentifyNamespace>,
}

impl<N: Network> Controller<N> {
    /// Asks the controller what it is.
    ///
    /// # Errors
    /// As for [`admin_command`](Self::admin_command), and [`Error::Status`], [`Error::Short`].
    pub async fn identify(&self) -> Result<Box<IdentifyController>, Error> {
        let connection = self.admin().await?;
        let admin = self.admin_on(&connection);
        admin.identify(cns::CONTROLLER, 0, csi::NVM).await
    }

    /// The active namespaces, ascending.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify), and [`Error::Controller`] where the list is not
    /// ascending.
    pub async fn active_namespaces(&self) -> Result<Vec<u32>, Error> {
        let connection = self.admin().await?;
        let admin = self.admin_on(&connection);
        let mut found: Vec<u32> = Vec::new();
        loop {
            let after = found.last().copied().unwrap_or(0);
            let list: Box<NamespaceList> = admin
                .identify(cns::ACTIVE_NAMESPACES, after, csi::NVM)
                .await?;
            let before = found.len();
            for nsid in list.iter() {
                if found.last().is_some_and(|last| nsid <= *last) || found.len() == NAMESPACES_MAX {
                    return Err(Error::Controller(
                        "the list of active namespaces is not ascending, or endless",
                    ));
                }
                found.push(nsid);
            }
            if found.len() - before < NamespaceList::CAPACITY {
                return Ok(found);
            }
        }
    }

    /// Asks for one namespace.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify), and [`Error::Controller`] where there is no such
    /// namespace, or its blocks are of no size.
    pub async fn namespace(&self, nsid: u32) -> Result<Namespace, Error> {
        let connection = self.admin().await?;
        let admin = self.admin_on(&connection);
        let identify: Box<IdentifyNamespace> =
            admin.identify(cns::NAMESPACE, nsid, csi::NVM).await?;
        let format = identify.formatted();
        if identify.nsze.get() == 0 {
            return Err(Error::Controller("the namespace is not active"));
        }
        if !(9..=16).contains(&format.lbads) {
            return Err(Error::Controller(
                "the namespace's blocks have less than 512 or more than 65536 bytes",
            ));
        }
        // Older controllers do not know the descriptors, and nothing depends on them.
        let descriptors = admin
            .identify::<[u8; IDENTIFY_BYTES]>(cns::NAMESPACE_DESCRIPTORS, nsid, csi::NVM)
            .await;
        let identifiers = match descriptors {
            Ok(list) => decode_descriptors(&list[..]).collect(),
            Err(Error::Status(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Namespace {
            nsid,
            block_bytes: 1 << format.lbads,
            metadata_bytes: format.ms.get(),
            blocks: identify.nsze.get(),
            identifiers,
            identify,
        })
    }

    /// Reads `bytes` bytes of a log page from `offset` on; both whole dwords.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub async fn log_page(
        &self,
        lid: u8,
        nsid: u32,
        offset: u64,
        bytes: u64,
    ) -> Result<Vec<u8>, Error> {
        if !offset.is_multiple_of(4) || !bytes.is_multiple_of(4) || bytes > LOG_BYTES_MAX {
            return Err(Error::Invalid(
                "a log page is read in whole dwords, and 64 MiB of it at most",
            ));
        }
        let connection = self.admin().await?;
        let admin = self.admin_on(&connection);
        let mut page = Vec::new();
        while (page.len() as u64) < bytes {
            let left = usize::try_from(bytes - page.len() as u64).unwrap_or(usize::MAX);
            let count = left.min(LOG_CHUNK_BYTES);
            let dwords = u32::try_from(count / 4).expect("at most a chunk");
            let at = offset + page.len() as u64;
            let sqe = admin::get_log_page(lid, nsid, at, dwords, false);
            let buffer = self.host().buffers().allocate(count).await;
            let into = Data::In(slice::from_ref(&buffer));
            whole(admin.command(&sqe, into).await?, count)?;
            page.extend_from_slice(&buffer.bytes());
        }
        Ok(page)
    }

    /// Reads a log page, or its beginning, as a structure.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub async fn log<T: FromBytes>(&self, lid: u8, nsid: u32) -> Result<T, Error> {
        let page = self.log_page(lid, nsid, 0, size_of::<T>() as u64).await?;
        T::read_from_bytes(&page[..]).map_err(|_| Error::Invalid("not a whole number of dwords"))
    }

    /// The current value of a feature, as dword 0 of the completion has it.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub async fn feature(&self, fid: u8, nsid: u32) -> Result<u32, Error> {
        let sqe = admin::get_features(fid, 0, nsid, 0);
        let completion = self.admin_command(&sqe, Data::None).await?;
        Ok(completion.ok()?.dw0())
    }

    /// Sets a feature; gives dword 0 of the completion.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub async fn set_feature(&self, fid: u8, nsid: u32, value: u32) -> Result<u32, Error> {
        let sqe = admin::set_features(fid, nsid, value);
        let completion = self.admin_command(&sqe, Data::None).await?;
        Ok(completion.ok()?.dw0())
    }

    /// Reads a property: see [`property`](crate::spec::property) for offsets.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub async fn property(&self, offset: u32, size: PropertySize) -> Result<u64, Error> {
        let connection = self.admin().await?;
        self.admin_on(&connection).property(offset, size).await
    }

    /// Sets a property.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub async fn set_property(
        &self,
        offset: u32,
        size: PropertySize,
        value: u64,
    ) -> Result<(), Error> {
        let connection = self.admin().await?;
        let admin = self.admin_on(&connection);
        admin.set_property(offset, size, value).await
    }

    /// The controller's status.
    ///
    /// # Errors
    /// As for [`identify`](Self::identify).
    pub async fn csts(&self) -> Result<Csts, Error> {
        let connection = self.admin().await?;
        self.admin_on(&connection).csts().await
    }
}
