//! WebSocket frames, right and wrong ones.

/// How the length of a frame is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthForm {
    /// The shortest form that holds the length, as RFC 6455 demands.
    Shortest,
    /// The 16-bit form, even where 7 bits would do.
    Sixteen,
    /// The 64-bit form, even where less would do.
    SixtyFour,
}

/// A frame to send, built without any check: it goes out as it was described.
///
/// The start is always what a correct client would send (final, masked,
/// shortest length); the other methods break one thing each.
#[derive(Debug, Clone)]
pub struct Frame {
    fin: bool,
    rsv: u8,
    opcode: u8,
    mask: Option<[u8; 4]>,
    length: LengthForm,
    claim: Option<u64>,
    payload: Vec<u8>,
}

impl Frame {
    /// A final, masked frame with this opcode.
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            fin: true,
            rsv: 0,
            opcode,
            mask: Some([0x37, 0xfa, 0x21, 0x3d]),
            length: LengthForm::Shortest,
            claim: None,
            payload: payload.into(),
        }
    }

    /// A text frame. Takes bytes, so that a test can send broken UTF-8.
    pub fn text(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(0x1, payload)
    }

    /// A binary frame.
    pub fn binary(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(0x2, payload)
    }

    /// A continuation frame.
    pub fn continuation(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(0x0, payload)
    }

    /// A ping.
    pub fn ping(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(0x9, payload)
    }

    /// A pong.
    pub fn pong(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(0xA, payload)
    }

    /// A close frame with a code and a reason.
    pub fn close(code: u16, reason: &str) -> Self {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(reason.as_bytes());
        Self::new(0x8, payload)
    }

    /// A close frame with any payload, for instance none, or a single byte.
    pub fn close_raw(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(0x8, payload)
    }

    /// Clears the final bit: more fragments follow.
    #[must_use]
    pub const fn more(mut self) -> Self {
        self.fin = false;
        self
    }

    /// Sets the reserved bits: 4 is RSV1, 2 is RSV2, 1 is RSV3.
    #[must_use]
    pub const fn rsv(mut self, bits: u8) -> Self {
        self.rsv = bits & 0b111;
        self
    }

    /// Sends the payload unmasked, which a client must never do.
    #[must_use]
    pub const fn unmasked(mut self) -> Self {
        self.mask = None;
        self
    }

    /// Uses this masking key.
    #[must_use]
    pub const fn mask(mut self, key: [u8; 4]) -> Self {
        self.mask = Some(key);
        self
    }

    /// Writes the length in this form.
    #[must_use]
    pub const fn length_form(mut self, form: LengthForm) -> Self {
        self.length = form;
        self
    }

    /// Announces this length whatever the payload has. A claim beyond 16 bits
    /// is written in the 64-bit form.
    #[must_use]
    pub const fn claims(mut self, length: u64) -> Self {
        self.claim = Some(length);
        self
    }

    /// The bytes that go over the wire.
    pub fn encode(&self) -> Vec<u8> {
        let length = self.claim.unwrap_or(self.payload.len() as u64);
        let form = match self.length {
            LengthForm::Shortest if length < 126 => None,
            LengthForm::Shortest | LengthForm::Sixteen if length <= u64::from(u16::MAX) => Some(LengthForm::Sixteen),
            _ => Some(LengthForm::SixtyFour),
        };
        let mask_bit = if self.mask.is_some() { 0x80 } else { 0 };
        let mut out = Vec::with_capacity(self.payload.len() + 14);
        out.push((u8::from(self.fin) << 7) | (self.rsv << 4) | (self.opcode & 0x0f));
        match form {
            None => out.push(mask_bit | length as u8),
            Some(LengthForm::Sixteen) => {
                out.push(mask_bit | 126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
            Some(_) => {
                out.push(mask_bit | 127);
                out.extend_from_slice(&length.to_be_bytes());
            }
        }
        match self.mask {
            None => out.extend_from_slice(&self.payload),
            Some(key) => {
                out.extend_from_slice(&key);
                let masked = self.payload.iter().zip(key.iter().cycle());
                out.extend(masked.map(|(byte, key)| byte ^ key));
            }
        }
        out
    }
}

/// A frame as the server sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// The final bit.
    pub fin: bool,
    /// The three reserved bits, RSV1 being 4.
    pub rsv: u8,
    /// The opcode.
    pub opcode: u8,
    /// Whether the frame was masked, which a server must never do.
    pub masked: bool,
    /// The payload.
    pub payload: Vec<u8>,
}

impl RawFrame {
    /// The payload as text.
    ///
    /// # Panics
    ///
    /// When it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("the server sent text that is not UTF-8")
    }

    /// The close code and the reason of a close frame; 1005 when it has none.
    pub fn close(&self) -> Option<(u16, String)> {
        if self.opcode != 0x8 {
            return None;
        }
        match self.payload.as_slice() {
            [] => Some((1005, String::new())),
            [high, low, reason @ ..] => {
                Some((u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason).into_owned()))
            }
            [_] => panic!("the server sent a close frame of one byte"),
        }
    }

    /// Takes one whole frame off the front of `buffer`, if there is one.
    pub(crate) fn take(buffer: &mut Vec<u8>) -> Option<Self> {
        let &[first, second, ..] = buffer.as_slice() else {
            return None;
        };
        let (mut at, length) = match second & 0x7f {
            126 => (4, buffer.get(2..4)?.iter().fold(0, fold_length)),
            127 => (10, buffer.get(2..10)?.iter().fold(0, fold_length)),
            short => (2, usize::from(short)),
        };
        let masked = second & 0x80 != 0;
        let key = if masked {
            at += 4;
            Some(buffer.get(at - 4..at)?.to_vec())
        } else {
            None
        };
        let mut payload = buffer.get(at..at.checked_add(length)?)?.to_vec();
        if let Some(key) = key {
            for (byte, key) in payload.iter_mut().zip(key.iter().cycle()) {
                *byte ^= key;
            }
        }
        buffer.drain(..at + length);
        Some(Self { fin: first & 0x80 != 0, rsv: (first >> 4) & 0b111, opcode: first & 0x0f, masked, payload })
    }
}

fn fold_length(length: usize, byte: &u8) -> usize {
    (length << 8) | usize::from(*byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(frame: &Frame) -> RawFrame {
        let mut bytes = frame.encode();
        let read = RawFrame::take(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        read
    }

    #[test]
    fn every_length_form_reads_back() {
        for length in [0, 125, 126, 65_535, 65_536] {
            for form in [LengthForm::Shortest, LengthForm::Sixteen, LengthForm::SixtyFour] {
                let payload = vec![b'x'; length];
                let read = round_trip(&Frame::text(payload.clone()).length_form(form));
                assert_eq!(read.payload, payload, "{length} as {form:?}");
            }
        }
    }

    #[test]
    fn the_known_masked_hello_of_the_standard() {
        assert_eq!(Frame::text("Hello").encode(), [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        assert_eq!(Frame::text("Hello").unmasked().encode(), [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    }

    #[test]
    fn half_a_frame_is_no_frame_yet() {
        let mut bytes = Frame::text(vec![b'x'; 300]).encode();
        let last = bytes.pop().unwrap();
        assert_eq!(RawFrame::take(&mut bytes), None);
        bytes.push(last);
        assert!(RawFrame::take(&mut bytes).is_some());
    }
}
