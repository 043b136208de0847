"""One picture: decoding, DICOM, letterbox, margins, corruptions."""
