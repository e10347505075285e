//! Where connections come from.

use std::net::{IpAddr, Ipv4Addr};

/// The address that connection `number` to `server` is bound to; `None` leaves it to the system.
///
/// A local address has some 28,000 ports for connections to one server, and each that was closed here rests for a
/// minute. On loopback there are addresses enough that neither is a limit.
pub(crate) fn address(server: IpAddr, number: u64) -> Option<IpAddr> {
    match server {
        IpAddr::V4(server) if server.is_loopback() => {
            Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2 + (number % ADDRESSES) as u8)))
        }
        _ => None,
    }
}

/// 127.0.0.2 to 127.0.0.251.
const ADDRESSES: u64 = 250;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn connections_spread_evenly_over_loopback() {
        let server = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut used = HashMap::new();
        for number in 0..100_000 {
            *used.entry(address(server, number).unwrap()).or_insert(0) += 1;
        }
        assert!(used.keys().all(IpAddr::is_loopback));
        assert!(!used.contains_key(&server));
        assert_eq!(used.values().max(), used.values().min());
        assert!(used.values().all(|&count| count < 1_000), "{used:?}");
    }

    #[test]
    fn elsewhere_the_system_chooses() {
        assert_eq!(address(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)), 7), None);
        assert_eq!(address("::1".parse().unwrap(), 7), None);
    }
}
