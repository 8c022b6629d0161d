//! The header of the PROXY protocol, by which a proxy before this one says whose connection it passes on (versions 1 and 2, HAProxy's
//! `proxy-protocol.txt`). Reads that header and not a byte more. Whoever may connect may claim any address, so it is off by default.

use std::io;
use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The shortest header: `PROXY UNKNOWN` with its line end. The fixed part of version 2 has one byte more.
const SHORTEST: usize = 15;
/// The longest line of version 1.
const LONGEST_LINE: usize = 107;
/// The fixed part of version 2.
const FIXED: usize = 16;
/// The most that may follow it: addresses, and what a proxy adds of itself.
const LONGEST_REST: usize = 4096;
/// The first bytes of version 2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads the header of a connection. Returns the client's address; `None` where the proxy speaks for itself or does not know.
///
/// # Errors
/// The connection begins otherwise, or ends.
pub async fn read<S: AsyncRead + Unpin>(io: &mut S) -> io::Result<Option<SocketAddr>> {
    let mut header = vec![0; SHORTEST];
    io.read_exact(&mut header).await?;
    if header.starts_with(SIGNATURE) {
        header.push(io.read_u8().await?);
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if rest > LONGEST_REST {
            return Err(wrong("the PROXY header is too long"));
        }
        header.resize(FIXED + rest, 0);
        io.read_exact(&mut header[FIXED..]).await?;
    } else if header.starts_with(b"PROXY ") {
        // Byte by byte: what follows the line belongs to whoever reads next.
        while !header.ends_with(b"\r\n") {
            if header.len() == LONGEST_LINE {
                return Err(wrong("the PROXY header's line is too long"));
            }
            header.push(io.read_u8().await?);
        }
    } else {
        return Err(wrong("no PROXY header, which listen.proxy_protocol asks for"));
    }
    client(&header)
}

fn client(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    match HeaderResult::parse(header) {
        HeaderResult::V1(Ok(header)) => Ok(match header.addresses {
            v1::Addresses::Unknown => None,
            v1::Addresses::Tcp4(of) => Some((of.source_address, of.source_port).into()),
            v1::Addresses::Tcp6(of) => Some((of.source_address, of.source_port).into()),
        }),
        // A proxy's own connection, such as a check of health.
        HeaderResult::V2(Ok(header)) if header.command == v2::Command::Local => Ok(None),
        HeaderResult::V2(Ok(header)) => Ok(match header.addresses {
            v2::Addresses::IPv4(of) => Some((of.source_address, of.source_port).into()),
            v2::Addresses::IPv6(of) => Some((of.source_address, of.source_port).into()),
            v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
        }),
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Err(wrong("the PROXY header is malformed")),
    }
}

fn wrong(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a header from these bytes; returns the rest, too.
    fn of(bytes: &[u8]) -> (Result<Option<SocketAddr>, String>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut left = bytes;
            let read = read(&mut left).await.map_err(|error| error.to_string());
            (read, left.to_vec())
        })
    }

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[0x20 | command, family], &length, rest, b"GET /"].concat()
    }

    #[test]
    fn both_versions_say_whose_connection_it_is_and_nothing_more_is_read() {
        let v4 = [10, 0, 0, 9, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let v6 = [[0; 15].as_slice(), &[1], &[0; 16], &[0, 7, 0, 80]].concat();
        // What a proxy adds of itself comes after the addresses.
        let more = [v4.as_slice(), &[0xea, 0, 3, 1, 2, 3]].concat();
        for (bytes, client) in [
            (b"PROXY TCP4 10.0.0.9 10.0.0.1 4660 80\r\nGET /".to_vec(), Some("10.0.0.9:4660")),
            (b"PROXY TCP6 ::1 ::2 7 80\r\nGET /".to_vec(), Some("[::1]:7")),
            (b"PROXY UNKNOWN\r\nGET /".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\nGET /".to_vec(), None),
            (version_2(1, 0x11, &v4), Some("10.0.0.9:4660")),
            (version_2(1, 0x11, &more), Some("10.0.0.9:4660")),
            (version_2(1, 0x21, &v6), Some("[::1]:7")),
            (version_2(0, 0x00, &[]), None),
            (version_2(0, 0x11, &v4), None),
        ] {
            let wanted = client.map(|client| client.parse().unwrap());
            assert_eq!(of(&bytes), (Ok(wanted), b"GET /".to_vec()), "{}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        let huge = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff], &[0; 70_000]].concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            b"PROXY TCP4 10.0.0.9 10.0.0.1 4660\r\n",
            b"PROXY TCP4 10.0.0.999 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 10.0.0.9 10.0.0.1 1 99999\r\n",
            b"PROXY UDP4 10.0.0.9 10.0.0.1 1 2\r\n",
            b"PROXY UNKNOW",
            b"",
            &long,
            &huge,
            &version_2(1, 0x11, &[1, 2, 3]),
            &version_2(7, 0x11, &[0; 12]),
        ] {
            assert!(of(bytes).0.is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(start in 0..3_usize, rest in proptest::collection::vec(any::<u8>(), 0..300)) {
            let start = [&b""[..], b"PROXY TCP4 ", SIGNATURE][start];
            let bytes = [start, &rest].concat();
            let (_, left) = of(&bytes);
            prop_assert!(bytes.ends_with(&left));
        }
    }
}
