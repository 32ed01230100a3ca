//! Addresses as people write them: a name or an address, with or without a port.

use std::{
    fmt,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    str::FromStr,
};

use super::failure::Failure;

/// Where a target is: a host, and its port where one was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: Option<u16>,
}

impl Address {
    /// The socket address, `port_default` where no port was given. A name is looked up.
    ///
    /// # Errors
    /// Where the name is not known.
    pub fn resolve(&self, port_default: u16) -> Result<SocketAddr, Failure> {
        let port = self.port.unwrap_or(port_default);
        let unknown = |why: String| {
            Failure::new(
                format!("cannot find the host `{}`: {why}", self.host),
                "write an IP address, as in 192.0.2.7:4420 or [2001:db8::7]:4420",
            )
        };
        (self.host.as_str(), port)
            .to_socket_addrs()
            .map_err(|error| unknown(error.to_string()))?
            .next()
            .ok_or_else(|| unknown("it has no address".to_owned()))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                host: address.ip().to_string(),
                port: Some(address.port()),
            });
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if bare.parse::<IpAddr>().is_ok() {
            return Ok(Self {
                host: bare.to_owned(),
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            None => (text, None),
            Some((host, port)) => {
                let port = port.parse().map_err(|_| {
                    format!("`{port}` is not a port; write it as in 192.0.2.7:4420")
                })?;
                (host, Some(port))
            }
        };
        if host.is_empty() || host.contains(['/', ' ', '[', ']', ':']) {
            return Err(format!(
                "`{host}` is not a host; write an address or a name, as in 192.0.2.7:4420"
            ));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v6 = self.host.contains(':');
        match (self.port, v6) {
            (Some(port), true) => write!(f, "[{}]:{port}", self.host),
            (Some(port), false) => write!(f, "{}:{port}", self.host),
            (None, _) => write!(f, "{}", self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_and_without_port() {
        let resolve = |text: &str| {
            let address: Address = text.parse().unwrap();
            address.resolve(4420).unwrap().to_string()
        };
        assert_eq!(resolve("127.0.0.1"), "127.0.0.1:4420");
        assert_eq!(resolve("127.0.0.1:8009"), "127.0.0.1:8009");
        assert_eq!(resolve("::1"), "[::1]:4420");
        assert_eq!(resolve("[::1]"), "[::1]:4420");
        assert_eq!(resolve("[::1]:1"), "[::1]:1");
    }

    #[test]
    fn what_is_no_address_says_what_is() {
        for text in ["", ":4420", "host:port", "host:70000", "a/b", "[::1:4420"] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains("as in 192.0.2.7:4420"), "{text}: {error}");
        }
    }
}
