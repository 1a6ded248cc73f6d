"""Messages of the Open Inference Protocol, generated from the `.proto` files of this folder."""
