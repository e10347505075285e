//! The payloads of the built-in requests.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{DecodeError, Id, envelope::Text};

/// Reads a request's `data` as an object of type `T`; absent data reads as `{}`.
///
/// # Errors
///
/// A bad frame where `data` is no object or a field has the wrong type.
pub fn parse_data<'a, T: Deserialize<'a>>(data: Option<&'a RawValue>) -> Result<T, DecodeError> {
    let json = data.map_or("{}", RawValue::get);
    // serde would take an array for a struct.
    if !json.starts_with('{') {
        return Err(DecodeError::bad("data is not an object"));
    }
    serde_json::from_str(json).map_err(|e| DecodeError::bad(format!("data: {e}")))
}

/// Payload of `ping`.
#[derive(Debug, Deserialize)]
pub struct PingData {
    /// The client's clock, Unix milliseconds.
    #[serde(default)]
    pub ts: Option<i64>,
}

/// Payload of `join_room`, `leave_room`, `delete_room` and `create_room`.
#[derive(Debug, Deserialize)]
pub struct RoomRequest<'a> {
    #[serde(borrow, default)]
    room_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    /// Most members at a time; absent: the setting's value.
    #[serde(default)]
    pub max_clients: Option<u32>,
}

impl RoomRequest<'_> {
    /// The room's id, checked.
    ///
    /// # Errors
    ///
    /// Refused where it is missing or against the rules for ids.
    pub fn room_id(&self) -> Result<&str, DecodeError> {
        checked("room_id", self.room_id.as_ref())
    }

    /// The room's display name.
    pub fn name(&self) -> Option<&str> {
        self.name.as_ref().map(|n| &*n.0)
    }
}

/// Payload of `room_message`.
#[derive(Debug, Deserialize)]
pub struct RoomMessage<'a> {
    #[serde(borrow, default)]
    room_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

impl<'a> RoomMessage<'a> {
    /// The room's id, checked.
    ///
    /// # Errors
    ///
    /// Refused where it is missing or against the rules for ids.
    pub fn room_id(&self) -> Result<&str, DecodeError> {
        checked("room_id", self.room_id.as_ref())
    }

    /// The payload; missing content is `null`.
    pub fn content(&self) -> &'a RawValue {
        self.content.unwrap_or(RawValue::NULL)
    }
}

/// Payload of `direct_message`.
#[derive(Debug, Deserialize)]
pub struct DirectMessage<'a> {
    #[serde(borrow, default)]
    target_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    target_client: Option<Text<'a>>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

impl<'a> DirectMessage<'a> {
    /// The user it is for, checked. Reserved names are allowed: an anonymous user has one.
    ///
    /// # Errors
    ///
    /// Refused where it is missing or against the rules for ids.
    pub fn target_id(&self) -> Result<&str, DecodeError> {
        match self.target_id.as_ref() {
            Some(Text(text)) if text.starts_with("anon:") => Ok(text),
            other => checked("target_id", other),
        }
    }

    /// The one connection it is for, where it names one.
    pub fn target_client(&self) -> Option<&str> {
        self.target_client.as_ref().map(|t| &*t.0)
    }

    /// The payload; missing content is `null`.
    pub fn content(&self) -> &'a RawValue {
        self.content.unwrap_or(RawValue::NULL)
    }
}

/// Payload of `room_members`.
#[derive(Debug, Deserialize)]
pub struct RoomMembersQuery<'a> {
    #[serde(borrow, default)]
    room_id: Option<Text<'a>>,
    /// Most members in the answer.
    #[serde(default)]
    pub limit: Option<u32>,
    #[serde(borrow, default)]
    cursor: Option<Text<'a>>,
}

impl RoomMembersQuery<'_> {
    /// The room's id, checked.
    ///
    /// # Errors
    ///
    /// Refused where it is missing or against the rules for ids.
    pub fn room_id(&self) -> Result<&str, DecodeError> {
        checked("room_id", self.room_id.as_ref())
    }

    /// Where the previous answer ended.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_ref().map(|c| &*c.0)
    }
}

fn checked<'t>(field: &str, text: Option<&'t Text<'_>>) -> Result<&'t str, DecodeError> {
    let Some(Text(text)) = text else {
        return Err(DecodeError::refused(format!("{field} is missing"), None));
    };
    match Id::check(text) {
        Ok(()) => Ok(Cow::as_ref(text)),
        Err(invalid) => Err(DecodeError::refused(format!("{field} {invalid}"), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.into()).unwrap()
    }

    #[test]
    fn data_must_be_an_object() {
        for json in ["[]", "[\"r1\"]", "1", "\"r1\""] {
            assert!(parse_data::<RoomRequest<'_>>(Some(&raw(json))).unwrap_err().is_bad_frame, "{json}");
        }
        let missing = parse_data::<RoomRequest<'_>>(None).unwrap();
        assert!(!missing.room_id().unwrap_err().is_bad_frame);
        assert!(parse_data::<RoomRequest<'_>>(Some(&raw(r#"{"room_id":5}"#))).unwrap_err().is_bad_frame);
    }

    #[test]
    fn missing_content_is_null() {
        let data = raw(r#"{"room_id":"r\u0031"}"#);
        let message: RoomMessage<'_> = parse_data(Some(&data)).unwrap();
        assert_eq!(message.room_id(), Ok("r1"));
        assert_eq!(message.content().get(), "null");
    }
}
