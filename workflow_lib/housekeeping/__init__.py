"""Commands that inspect and tidy work/ by what results/ needs; no training depends on them."""
