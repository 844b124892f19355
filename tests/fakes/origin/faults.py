"""What an origin can do wrong, in its own words."""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    NONE = "answers as it should"

    # the range
    NO_RANGES = "answers 200 with everything"
    NO_LENGTH = "answers 200, chunked"
    NO_LABEL = "answers 206 without a Content-Range"
    NO_TOTAL = "answers 206 without the total length"
    OTHER_RANGE = "sends another range, and says so"
    OTHER_TOTAL = "says another total length"
    LABELLED_200 = "answers 200 with the range as its whole body"
    MULTIPART = "answers 206 with the range as one part of a multipart body"
    LONGER = "sends, and announces, more bytes than its Content-Range says"
    SHORTER = "sends, and announces, fewer bytes than its Content-Range says"
    SURPLUS = "sends more bytes than it announced"
    OVERLONG = "answers 200, chunked, with a byte more than the object has"
    UNSATISFIABLE = "answers 416"
    NO_TAIL = "answers 416 to a range that begins later than the object does"

    # the content
    CHANGE = "has another version from now on"
    CHURN = "has another version at every request"
    CORRUPT = "flips one byte; every header is right"
    GZIP = "encodes although identity was asked"

    # the connection
    TRUNCATE = "closes the connection half way"
    RESET = "resets the connection half way"
    STALL = "stops half way and keeps the connection"
    DRIBBLE = "sends a byte now and then"
    MUTE = "takes the request and never answers"
    HANG_UP = "closes the connection without an answer"
    ONE_SHOT = "speaks HTTP/1.0, and closes the connection after the reply"
    UNFRAMED = "tells neither the length nor the end of its reply"
    GARBAGE = "answers with something that is not HTTP"
    LONG_HEADERS = "answers with headers beyond every limit"

    # the service
    THROTTLE = "answers 429 with Retry-After in seconds"
    THROTTLE_UNTIL = "answers 429 with Retry-After as a date"
    UNAVAILABLE = "answers 503"
    OVERLOADED = "answers 529, which is in no standard"
    CUT_OFF = "answers 522, as an edge that does not reach what is behind it"
    UNABLE = "answers 501"
    UNAUTHORIZED = "answers 401"
    FORBID = "answers 403"
    LOSE = "answers 404"
    LOOP = "redirects to itself"
