"""Workers in processes of their own: what they tell, how they are started, and how the API reaches them."""
