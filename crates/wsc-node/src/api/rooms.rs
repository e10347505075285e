//! Rooms over HTTP.

use axum::{Extension, response::Response};
use http::{HeaderValue, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use wsc_auth::Permission;
use wsc_protocol::{ErrorCode, Priority};

use super::{
    access::{Caller, Via},
    extract::{Json, Params, PathId, PathUser, present},
    messages::{Published, Push, Wishes, push_body},
    reply::{self, ErrorBody, Refusal},
};
use crate::{
    dispatch::page,
    hub::{check_id, oneshot_answer},
    rooms::{RoomInfo, RoomOptions},
    routing::SendReceipt,
};

/// Which part of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Entries at most, 1 to 1,000; default 100.
    pub(crate) limit: Option<u32>,
    /// Where the last part ended.
    pub(crate) cursor: Option<String>,
}

/// A room.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `RoomInfo` is written as")]
pub(crate) struct Room {
    id: String,
    name: String,
    /// Most members; 0: no limit.
    max_clients: u32,
    member_count: usize,
}

/// Lists rooms by id. How many there are says `X-Total-Count`; where more follow, `X-Next-Cursor` says from where.
#[utoipa::path(get, path = "/api/rooms", tag = "rooms", params(Page), responses(
    (status = 200, description = "rooms", body = Vec<Room>, headers(
        ("X-Total-Count" = u64, description = "How many rooms there are"),
        ("X-Next-Cursor" = Option<String>, description = "The `cursor` of the next part"),
    )),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn list_rooms(
    Extension(via): Extension<Via>,
    Params(query): Params<Page>,
) -> Result<Response, Refusal> {
    let (_, limit) = page(None, query.limit)?;
    // The id of the last room seen; encoded, because it travels in a header.
    let after = query.cursor.filter(|cursor| !cursor.is_empty());
    let after = after.map(|cursor| percent_decode_str(&cursor).decode_utf8_lossy().into_owned());
    let rooms = via.core.rooms.list();
    let start = after.map_or(0, |after| rooms.partition_point(|room| room.id.as_str() <= after.as_str()));
    let part = &rooms[start..(start + limit).min(rooms.len())];
    let settings = via.core.settings();
    let infos: Vec<_> = part.iter().map(|room| RoomInfo::new(room, &settings)).collect();
    let mut response = reply::ok(&infos);
    let headers = response.headers_mut();
    headers.insert("x-total-count", HeaderValue::from(rooms.len()));
    if let Some(last) = part.last().filter(|_| start + part.len() < rooms.len()) {
        let cursor = utf8_percent_encode(last.id.as_str(), NON_ALPHANUMERIC).to_string();
        if let Ok(cursor) = HeaderValue::try_from(cursor) {
            headers.insert("x-next-cursor", cursor);
        }
    }
    Ok(response)
}

/// A room to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRoom {
    id: String,
    /// Default: the id.
    name: Option<String>,
    /// Most members; default, and for 0: what the settings say.
    max_clients: Option<u32>,
}

/// What was done to a room.
#[derive(Serialize, ToSchema)]
pub(crate) struct RoomDone {
    #[schema(value_type = String)]
    status: &'static str,
    id: String,
}

/// Makes a room, which stays until it is deleted.
#[utoipa::path(post, path = "/api/rooms", tag = "rooms", request_body = NewRoom, responses(
    (status = 201, description = "made", body = RoomDone),
    (status = "default", description = "refused; 3001 where there is one of this id", body = ErrorBody),
))]
pub(crate) async fn create_room(
    Extension(via): Extension<Via>,
    Extension(caller): Extension<Caller>,
    Json(room): Json<NewRoom>,
) -> Result<Response, Refusal> {
    check_id("id", &room.id)?;
    caller.require_room(Permission::CreateRoom, &room.id)?;
    via.core.create_room(&room.id, RoomOptions::new(room.name, room.max_clients))?;
    Ok(reply::json(StatusCode::CREATED, &RoomDone { status: "room created", id: room.id }))
}

/// Deletes a room and tells its members.
#[utoipa::path(delete, path = "/api/rooms/{id}", tag = "rooms",
    params(("id" = String, Path, description = "Room id")), responses(
        (status = 200, description = "deleted", body = RoomDone),
        (status = "default", description = "refused; 3000 where there is none", body = ErrorBody),
    ))]
pub(crate) async fn delete_room(Extension(via): Extension<Via>, PathId(id): PathId) -> Result<Response, Refusal> {
    via.core.delete_room(&id, None)?;
    Ok(reply::ok(&RoomDone { status: "room deleted", id }))
}

/// Members of a room.
#[derive(Serialize, ToSchema)]
pub(crate) struct Members {
    members: Vec<Member>,
    total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Member {
    user_id: String,
    client_id: String,
    #[schema(value_type = String)]
    session: Uuid,
}

/// Lists the connections that are in a room.
#[utoipa::path(get, path = "/api/rooms/{id}/members", tag = "rooms",
    params(("id" = String, Path, description = "Room id"), Page), responses(
        (status = 200, description = "members", body = Members),
        (status = "default", description = "refused", body = ErrorBody),
    ))]
pub(crate) async fn list_members(
    Extension(via): Extension<Via>,
    PathId(id): PathId,
    Params(query): Params<Page>,
) -> Result<Response, Refusal> {
    let (start, limit) = page(query.cursor.as_deref(), query.limit)?;
    let room = via.core.rooms.get(&id).ok_or(ErrorCode::RoomNotFound)?;
    let (members, next) = room.fanout.members(start, limit);
    let members = members.iter().map(|member| Member {
        user_id: member.0.user().id.to_string(),
        client_id: member.0.client_id().to_string(),
        session: member.0.id,
    });
    Ok(reply::ok(&Members {
        members: members.collect(),
        total: room.fanout.len(),
        next_cursor: next.map(|next| next.to_string()),
    }))
}

/// What was done to a user's connections.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberDone {
    #[schema(value_type = String)]
    status: &'static str,
    room_id: String,
    user_id: String,
    /// How many connections.
    connections: usize,
}

/// Puts all present connections of a user into a room.
#[utoipa::path(post, path = "/api/rooms/{id}/members/{user}", tag = "rooms",
    params(("id" = String, Path, description = "Room id"), ("user" = String, Path, description = "User id")),
    responses(
        (status = 200, description = "added", body = MemberDone),
        (status = "default", description = "refused", body = ErrorBody),
    ))]
pub(crate) async fn add_member(
    Extension(via): Extension<Via>,
    PathId(room_id): PathId,
    PathUser(user_id): PathUser,
) -> Result<Response, Refusal> {
    let connections = via.core.join_user(&room_id, &user_id)?;
    Ok(reply::ok(&MemberDone { status: "added", room_id, user_id, connections }))
}

/// Why a user is removed.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Removal {
    /// Told to the user; default `removed`.
    reason: Option<String>,
}

/// Takes all connections of a user out of a room.
#[utoipa::path(delete, path = "/api/rooms/{id}/members/{user}", tag = "rooms",
    params(("id" = String, Path, description = "Room id"), ("user" = String, Path, description = "User id"), Removal),
    responses(
        (status = 200, description = "removed", body = MemberDone),
        (status = "default", description = "refused", body = ErrorBody),
    ))]
pub(crate) async fn remove_member(
    Extension(via): Extension<Via>,
    PathId(room_id): PathId,
    PathUser(user_id): PathUser,
    Params(removal): Params<Removal>,
) -> Result<Response, Refusal> {
    let reason = removal.reason.as_deref().unwrap_or("removed");
    let connections = via.core.remove_user(&room_id, &user_id, reason)?;
    Ok(reply::ok(&MemberDone { status: "removed", room_id, user_id, connections }))
}

push_body! {
    /// A message to a room that the body names: either `message` or `content`.
    RoomPush {
        /// The room.
        room_id: String,
        /// Any JSON; GoHub's name for `content`.
        #[serde(default, deserialize_with = "present")]
        #[schema(value_type = Option<Value>)]
        message: Option<Box<RawValue>>,
        /// Any JSON; it arrives byte for byte.
        #[serde(default, deserialize_with = "present")]
        #[schema(value_type = Option<Value>)]
        content: Option<Box<RawValue>>,
    }
}

/// Sends to all members of a room.
#[utoipa::path(post, path = "/api/rooms/{id}/messages", tag = "messages",
    params(("id" = String, Path, description = "Room id")), request_body = Push, responses(
        (status = 202, description = "accepted", body = Published),
        (status = "default", description = "refused", body = ErrorBody),
    ))]
pub(crate) async fn send_to_room(
    Extension(via): Extension<Via>,
    Extension(caller): Extension<Caller>,
    PathId(room_id): PathId,
    Json(mut push): Json<Push>,
) -> Result<Response, Refusal> {
    publish(&via, &caller, &room_id, push.wishes(), &push.content).await
}

/// Sends to all members of a room, as GoHub's clients ask for it.
#[utoipa::path(post, path = "/api/broadcast/room", tag = "messages", request_body = RoomPush, responses(
    (status = 202, description = "accepted", body = Published),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn broadcast_to_room(
    Extension(via): Extension<Via>,
    Extension(caller): Extension<Caller>,
    Json(mut push): Json<RoomPush>,
) -> Result<Response, Refusal> {
    check_id("room_id", &push.room_id)?;
    caller.require_room(Permission::AdminRoom, &push.room_id)?;
    let wishes = push.wishes();
    let content = match (push.message, push.content) {
        (Some(content), None) | (None, Some(content)) => content,
        (None, None) => return Err(Refusal::invalid("either message or content is missing")),
        (Some(_), Some(_)) => return Err(Refusal::invalid("message and content cannot go together")),
    };
    publish(&via, &caller, &push.room_id, wishes, &content).await
}

async fn publish(
    via: &Via,
    caller: &Caller,
    room_id: &str,
    wishes: Wishes,
    content: &RawValue,
) -> Result<Response, Refusal> {
    if wishes.waits()? {
        return Err(Refusal::invalid("wait goes with messages to one user"));
    }
    let options = wishes.granted(&via.core, caller, true)?;
    let (answer, answered) = oneshot_answer();
    via.core.send_room(room_id, content, &options, caller.via(), answer);
    let answered = answered.await?;
    let SendReceipt { id, duplicate, .. } = answered.receipt;
    let recipients = answered.recipients;
    Ok(reply::json(StatusCode::ACCEPTED, &Published { status: None, id, recipients, duplicate }))
}
