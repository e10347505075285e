//! Which addresses a webhook may be posted to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Whether packets to this address leave for the internet, rather than for this machine, its networks or nobody.
///
/// What is not known to be public is not: of IPv6 only the range that is given out counts.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !NOT_PUBLIC_V4.iter().any(|net| net.contains(&address))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // A translator on the way, or this machine's kernel, would send it to the IPv4 address within.
    if let Some(embedded) = embedded_v4(address) {
        return is_public_v4(embedded);
    }
    GLOBAL_UNICAST.contains(&address) && !NOT_PUBLIC_V6.iter().any(|net| net.contains(&address))
}

/// The IPv4 address that is meant: by IPv4-mapped addresses, by NAT64 and by 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bytes = address.octets();
    let at = |from: usize| Ipv4Addr::new(bytes[from], bytes[from + 1], bytes[from + 2], bytes[from + 3]);
    if V4_MAPPED.contains(&address) || NAT64.contains(&address) {
        Some(at(12))
    } else if SIX_TO_FOUR.contains(&address) {
        Some(at(2))
    } else {
        None
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// IANA's special-purpose registry.
const NOT_PUBLIC_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),       // this network, unspecified
    v4(10, 0, 0, 0, 8),      // private
    v4(100, 64, 0, 0, 10),   // carrier-grade NAT
    v4(127, 0, 0, 0, 8),     // loopback
    v4(169, 254, 0, 0, 16),  // link-local, cloud metadata
    v4(172, 16, 0, 0, 12),   // private
    v4(192, 0, 0, 0, 24),    // protocol assignments
    v4(192, 0, 2, 0, 24),    // documentation
    v4(192, 88, 99, 0, 24),  // 6to4 relays
    v4(192, 168, 0, 0, 16),  // private
    v4(198, 18, 0, 0, 15),   // benchmarking
    v4(198, 51, 100, 0, 24), // documentation
    v4(203, 0, 113, 0, 24),  // documentation
    v4(224, 0, 0, 0, 4),     // multicast
    v4(240, 0, 0, 0, 4),     // reserved, broadcast
];

/// Everything that is given out; loopback, unspecified, IPv4-compatible, unique-local, link-local, site-local and
/// multicast addresses lie outside.
const GLOBAL_UNICAST: Ipv6Net = v6(0x2000, 0, 0, 3);

/// What within it is not public.
const NOT_PUBLIC_V6: [Ipv6Net; 3] = [
    v6(0x2001, 0, 0, 23),     // protocol assignments: Teredo, benchmarking, ORCHID
    v6(0x2001, 0xdb8, 0, 32), // documentation
    v6(0x3fff, 0, 0, 20),     // documentation
];

const V4_MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);
const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 16);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn public(text: &str) -> bool {
        is_public(text.parse().unwrap())
    }

    #[test]
    fn what_is_inside_is_not_public() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::10.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.1.2.3",
            "64:ff9b:1::1",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:a00:1::1",
            "2002:c0a8:101::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
        ] {
            assert!(!public(text), "{text}");
        }
    }

    #[test]
    fn the_internet_is_public() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.0.1",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "2600::1",
            "2a00:1450:4001::1",
            "2606:4700:4700::1111",
        ] {
            assert!(public(text), "{text}");
        }
    }

    proptest! {
        /// However it is written, an address is judged as the IPv4 address that packets would go to.
        #[test]
        fn an_embedded_address_is_judged_as_itself(bits: u32, rest: u64, subnet: u16) {
            let inner = Ipv4Addr::from(bits);
            let expected = is_public(inner.into());
            let low = u128::from(bits);
            prop_assert_eq!(is_public(inner.to_ipv6_mapped().into()), expected);
            let nat64 = Ipv6Addr::from(0x0064_ff9b_u128 << 96 | low);
            prop_assert_eq!(is_public(nat64.into()), expected);
            let six_to_four = Ipv6Addr::from(0x2002_u128 << 112 | low << 80 | u128::from(subnet) << 64 | u128::from(rest));
            prop_assert_eq!(is_public(six_to_four.into()), expected);
            // The deprecated compatible form is never anybody's.
            prop_assert!(!is_public(inner.to_ipv6_compatible().into()));
        }

        /// What the standard library knows to be special is never public.
        #[test]
        fn nothing_special_gets_through(v4: u32, v6: u128) {
            let a = Ipv4Addr::from(v4);
            let special = a.is_loopback() || a.is_private() || a.is_link_local() || a.is_multicast() || a.is_broadcast()
                || a.is_documentation() || a.is_unspecified();
            prop_assert!(!(special && is_public(a.into())), "{}", a);
            let b = Ipv6Addr::from(v6);
            let special = b.is_loopback() || b.is_multicast() || b.is_unspecified() || b.is_unique_local()
                || b.is_unicast_link_local();
            prop_assert!(!(special && is_public(b.into())), "{}", b);
        }

        /// A whole private range, wherever in it.
        #[test]
        fn no_corner_of_a_private_range_is_public(host: u32, low: u128) {
            for net in NOT_PUBLIC_V4 {
                let a = Ipv4Addr::from(u32::from(net.network()) | host & u32::from(net.hostmask()));
                prop_assert!(!is_public(a.into()), "{}", a);
            }
            for net in NOT_PUBLIC_V6 {
                let a = Ipv6Addr::from(u128::from(net.network()) | low & u128::from(net.hostmask()));
                prop_assert!(!is_public(a.into()), "{}", a);
            }
        }
    }
}
